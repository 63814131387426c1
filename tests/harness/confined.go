// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
)

// VMMCapabilities are the capability sets, all of them, of a VMM.
const VMMCapabilities = "0000000000000000"

// Confined says what of a process of a pod is not confined, by what /proc shows of it: it must have a user
// of its own without capabilities, namespaces of its own, an empty root that cannot be written to, no core
// and no memory that others could read. user is the process's uid.
func Confined(pid int) (user int, err error) {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	st, err := statusFields(pid)
	if err != nil {
		return 0, err
	}
	h := configs.Default().Hypervisor
	for _, key := range []string{"Uid", "Gid"} {
		ids := strings.Fields(st[key])
		n, err := strconv.ParseUint(ids[0], 10, 32)
		if err != nil || n < h.FirstUser || n >= h.FirstUser+h.Users ||
			strings.Join(ids, " ") != strings.TrimSpace(strings.Repeat(ids[0]+" ", 4)) {
			wrong("%s is %q, want four times one of %d from %d on", key, st[key], h.Users, h.FirstUser)
		}
		user = int(n)
	}
	want := map[string]string{"Groups": "", "NoNewPrivs": "1"}
	for _, set := range []string{"Inh", "Prm", "Eff", "Bnd", "Amb"} {
		want["Cap"+set] = VMMCapabilities
	}
	for key, value := range want {
		if st[key] != value {
			wrong("%s is %q, want %q", key, st[key], value)
		}
	}
	if in := strings.Fields(st["NSpid"]); len(in) < 2 || in[len(in)-1] != "1" {
		wrong("NSpid is %q, want it to be the first of a namespace", st["NSpid"])
	}
	errs = append(errs, namespaces(pid), root(pid), closed(pid), devices(pid))
	if len(errs) > 0 {
		err = errors.Join(errs...)
	}
	return user, err
}

// devices has a shell join each of the process's groups that can restrict devices, and open one that no VMM needs.
func devices(pid int) error {
	hs, err := cgroups.Hierarchies()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	errs := []error{err}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, h := range hs {
			if len(f) != 3 || h.V2 != (f[1] == "") || !h.V2 && (f[1] != "devices" || filepath.Base(h.Mount) != "devices") {
				continue
			}
			group := filepath.Join(h.Mount, f[2])
			const script = `echo 0 >"$1/cgroup.procs" && ! (: </dev/full) 2>/dev/null`
			if out, err := exec.Command("/bin/sh", "-c", script, "sh", group).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("a process in %s can open /dev/full: %w %s", group, err, out))
			}
		}
	}
	return errors.Join(errs...)
}

// statusFields reads /proc/PID/status.
func statusFields(pid int) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		out[key] = strings.TrimSpace(value)
	}
	return out, nil
}

func namespaces(pid int) error {
	var errs []error
	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		its, ierr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err = errors.Join(err, ierr); err == nil && its == ours {
			err = fmt.Errorf("its %s namespace is the host's", ns)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// root looks at a root as nerdctl cp does, which goes by /proc/PID/root.
func root(pid int) error {
	dir := fmt.Sprintf("/proc/%d/root/", pid)
	var errs []error
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("its root has %d entries, as %s", len(entries), entries[0].Name())
	}
	errs = append(errs, err)
	if err := os.WriteFile(filepath.Join(dir, "made"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		errs = append(errs, fmt.Errorf("writing into its root: %w, want EROFS", err))
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err == nil && (len(mounts) != 1 || mounts[0].FSType != "tmpfs" ||
		!strings.HasPrefix(mounts[0].Options, "ro,nosuid,nodev,noexec")) {
		for _, m := range mounts {
			errs = append(errs, fmt.Errorf("it sees %s mounted on %s, %s", m.FSType, m.Mountpoint, m.Options))
		}
	}
	return errors.Join(append(errs, err)...)
}

// ShimConfined says what is not as it is meant to be with a pod's shim, which is root on the host: its memory is its
// own, and it is in a leaf of the pod's cgroup beside the VMM's.
func ShimConfined(shim, vmm int) error {
	errs := []error{closed(shim)}
	groups := func(pid int, leaf string) map[string]string {
		out := map[string]string{}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		errs = append(errs, err)
		for line := range strings.Lines(string(text)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 || strings.HasPrefix(f[1], "name=") || f[2] == "/" && f[1] == "" {
				continue
			}
			if filepath.Base(f[2]) != leaf {
				errs = append(errs, fmt.Errorf("process %d is in cgroup %s:%s, not in a leaf %s", pid, f[1], f[2], leaf))
			}
			out[f[1]] = filepath.Dir(f[2])
		}
		return out
	}
	its, ours := groups(vmm, "vmm"), groups(shim, "shim")
	for c, g := range ours {
		if its[c] != g {
			errs = append(errs, fmt.Errorf("cgroup %s: the shim is below %s, the VMM below %s", c, g, its[c]))
		}
	}
	return errors.Join(errs...)
}

// closed looks at what others could get of the process's memory. The files of one that is not dumpable
// belong to root.
func closed(pid int) error {
	var errs []error
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	errs = append(errs, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") &&
			(len(f) < 6 || f[4] != "0" || f[5] != "0") {
			errs = append(errs, errors.New(strings.TrimSpace(line)))
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/maps", pid), &st); err != nil || st.Uid != 0 {
		errs = append(errs, fmt.Errorf("it is dumpable: its memory belongs to user %d (%w)", st.Uid, err))
	}
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	errs = append(errs, err)
	for _, want := range []string{"dump-guest-core=off", "mem-merge=off"} {
		if strings.HasPrefix(filepath.Base(string(argv)), "qemu") && !strings.Contains(string(argv), want) {
			errs = append(errs, fmt.Errorf("its command line has no %s", want))
		}
	}
	return errors.Join(errs...)
}
