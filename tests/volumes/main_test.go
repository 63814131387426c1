// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package volumes tests the volumes of a pod with real VMs: kubelet's directories are laid out by
// hand, as kubelet does it, and containers look at the resulting mounts in the guest.
package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// The test program is its own launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// podUID is the pod's, which is in kubelet's paths.
const podUID = "a1b2-c3"

// patience bounds everything that a test waits for.
const patience = 3 * time.Minute

var applets = []string{
	"sh", "true", "echo", "cat", "sleep", "ls", "id", "stat", "readlink", "mount", "grep", "mkdir",
	"ln", "dd", "df", "touch", "rm", "wc", "head", "cp", "mv", "test", "cut", "sync", "seq", "find", "sort",
}

func rootfs(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	bb, err := exec.LookPath("busybox")
	must(t, err)
	data, err := os.ReadFile(bb)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755))
	for _, a := range applets {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", a)))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spec is a container as containerd's CRI describes it.
func spec(mounts []specs.Mount, args ...string) *specs.Spec {
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.MountNamespace, specs.NetworkNamespace,
	} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD"}
	return &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs"}, Hostname: "pod",
		Annotations: map[string]string{
			contract.CRISandboxID: "pod", contract.CRISandboxUID: podUID,
			contract.CRIContainerType: "container",
		},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: append([]specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{
				"nosuid", "strictatime", "mode=755",
				"size=65536k",
			}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		}, mounts...),
		Linux: &specs.Linux{
			Namespaces: ns, CgroupsPath: "/coco-test/volumes",
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
}

// pod is a VM and kubelet's directory for it.
type pod struct {
	*virtcontainers.Pod
	t      *testing.T
	dir    string // bundle
	volume string // kubelet's volumes directory
	n      atomic.Int64
}

// newPod boots a pod. change may alter the configuration.
func newPod(t *testing.T, change func(*configs.Config)) *pod {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox, testvm.Netns)
	return newPodIn(t, podDir(t), change)
}

// podDir makes a pod's directory, on a disk, as kubelet's is on one.
func podDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "coco-volumes-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func newPodIn(t *testing.T, dir string, change func(*configs.Config)) *pod {
	t.Helper()
	rootfs(t, filepath.Join(dir, "rootfs"))
	cfg, h, log := machine(t, dir, change)
	vp, err := virtcontainers.CreatePod(t.Context(), virtcontainers.Options{
		ID: "pod", Namespace: "test", Bundle: dir, Spec: spec(nil, "true"), Config: cfg, Host: h, Log: log,
	})
	if err != nil {
		t.Fatalf("CreatePod() = %v", err)
	}
	p := &pod{Pod: vp, t: t, dir: dir, volume: filepath.Join(dir, "kubelet/pods", podUID, "volumes")}
	t.Cleanup(func() {
		for _, ph := range vp.Phases() {
			t.Logf("%-28s %s", ph.Name, ph.Duration.Round(time.Millisecond/10))
		}
		if err := vp.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		for _, d := range []string{"run/*", "coco-state.json", "kubelet/pods/*/volumes/kubernetes.io~empty-dir/*/*"} {
			names, _ := filepath.Glob(filepath.Join(dir, d))
			names = slices.DeleteFunc(names, func(n string) bool { return filepath.Base(n) == "templates" })
			if len(names) > 0 {
				t.Errorf("left: %q", names)
			}
		}
	})
	return p
}

// machine is this host, with a configuration that has all files in dir.
func machine(t *testing.T, dir string, change func(*configs.Config)) (configs.Config, boot.Host,
	*slog.Logger,
) {
	t.Helper()
	cfg := configs.Default()
	cfg.Hypervisor.GuestDir = testvm.GuestDir()
	cfg.Runtime.StateDir, cfg.Runtime.LayerCache = filepath.Join(dir, "run"), filepath.Join(dir, "layers")
	cfg.Runtime.ScratchDir = filepath.Join(dir, "scratch")
	cfg.Runtime.KubeletDirs = []string{filepath.Join(dir, "kubelet")}
	if change != nil {
		change(&cfg)
	}
	must(t, harness.Template(t.Context(), &cfg))
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	h, err := host.New(cfg, "", log)
	must(t, err)
	return cfg, h, log
}

// make makes a volume's directory as kubelet does.
func (p *pod) make(plugin, name string, mode fs.FileMode) string {
	p.t.Helper()
	dir := filepath.Join(p.volume, "kubernetes.io~"+plugin, name)
	must(p.t, os.MkdirAll(dir, 0o755))
	must(p.t, os.Chmod(dir, mode))
	return dir
}

// tmpfs mounts one on a directory for the test.
func (p *pod) tmpfs(dir, options string) {
	p.t.Helper()
	must(p.t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	p.t.Cleanup(func() { must(p.t, unix.Unmount(dir, 0)) })
}

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{
		Destination: dest, Type: "bind", Source: source,
		Options: append([]string{"rbind", "rprivate"}, options...),
	}
}

// start starts a shell script in a container of its own.
func (p *pod) start(mounts []specs.Mount, script string, change func(*specs.Spec)) (id string, out *bytes.Buffer,
	done func() uint32,
) {
	p.t.Helper()
	id = fmt.Sprintf("c%d", p.n.Add(1))
	s := spec(mounts, "sh", "-c", script)
	if change != nil {
		change(s)
	}
	c, st, err := p.CreateContainer(p.t.Context(), virtcontainers.ContainerRequest{
		ID: id, Bundle: p.dir, Spec: s,
		Stdout: true, Stderr: true,
	})
	if err != nil {
		p.t.Fatalf("CreateContainer(%s) = %v", id, err)
	}
	out = &bytes.Buffer{}
	read := make(chan error, 2)
	go func() { _, err := io.Copy(out, st.Stdout); read <- err }()
	go func() { _, err := io.Copy(os.Stderr, st.Stderr); read <- err }()
	if _, err := c.Init().Start(p.t.Context()); err != nil {
		p.t.Fatalf("Start(%s) = %v", id, err)
	}
	return id, out, func() uint32 {
		p.t.Helper()
		ctx, cancel := context.WithTimeout(p.t.Context(), patience)
		defer cancel()
		x, err := c.Init().Wait(ctx)
		must(p.t, err)
		if err := errors.Join(<-read, <-read); err != nil {
			p.t.Errorf("output of %s: %v", id, err)
		}
		if _, err := c.Init().Delete(p.t.Context()); err != nil {
			p.t.Errorf("Delete(%s) = %v", id, err)
		}
		return x.Code
	}
}

// run runs a script in a container and returns what it says.
func (p *pod) run(mounts []specs.Mount, script string) string {
	p.t.Helper()
	_, out, done := p.start(mounts, script, nil)
	if code := done(); code != 0 {
		p.t.Errorf("script %q exits %d, says %q", script, code, out)
	}
	return out.String()
}

// refused expects that a container with these mounts is refused, with these words.
func (p *pod) refused(mounts []specs.Mount, words string, change func(*specs.Spec)) {
	p.t.Helper()
	s := spec(mounts, "true")
	if change != nil {
		change(s)
	}
	_, _, err := p.CreateContainer(p.t.Context(), virtcontainers.ContainerRequest{ID: "refused", Bundle: p.dir, Spec: s})
	if err == nil {
		p.t.Fatalf("a container with %v was created, want an error with %q", mounts, words)
	}
	if !bytes.Contains([]byte(err.Error()), []byte(words)) {
		p.t.Errorf("CreateContainer() = %v, want %q in it", err, words)
	}
	p.t.Logf("refused: %v", err)
}

// payload writes a state of an atomic volume as kubelet does: a new directory, a rename over ..data,
// then links for users, then the removal of what is gone.
func payload(t *testing.T, dir, stamp string, files map[string]string) {
	t.Helper()
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	ts := filepath.Join(dir, "..2026_11_24_"+stamp)
	must(t, os.Mkdir(ts, 0o755))
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Join(ts, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(ts, name), []byte(text), 0o640))
	}
	must(t, os.Symlink(filepath.Base(ts), filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for name := range files {
		name, _, _ = strings.Cut(name, "/")
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil &&
			!errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	if old == "" {
		return
	}
	entries, err := os.ReadDir(filepath.Join(dir, old))
	must(t, err)
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(ts, e.Name())); err != nil {
			must(t, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	must(t, os.RemoveAll(filepath.Join(dir, old)))
}
