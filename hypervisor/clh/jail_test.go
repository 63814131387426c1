// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
)

// The VMM boots and takes disks that only root may read, as a user of its own in an empty root.
func TestTheVMMRunsInAJail(t *testing.T) {
	testvm.Need(t, testvm.Root)
	for _, landlock := range []bool{false, true} {
		t.Run(fmt.Sprintf("landlock=%v", landlock), func(t *testing.T) {
			staging := filepath.Join(t.TempDir(), "plug")
			h := newHarness(t, clhtest.Config{}, Options{Landlock: landlock, Staging: staging})
			spec, d := plain(t), dir(t)
			for _, b := range spec.Blocks {
				mode := os.FileMode(0o600)
				if b.ReadOnly {
					mode = 0o400
				}
				if err := b.File.Chmod(mode); err != nil {
					t.Fatal(err)
				}
			}
			opts := jailed(d, h.vmm.Kept...)
			opts.Jail.Paths = h.vmm.Paths
			m, err := h.launchIn(t, spec, opts, d)
			if err != nil {
				t.Fatal(err)
			}
			if got := calls(h.vmm, "vm.boot")[0].Opened; len(got) != 4 || got[2] != clhtest.IDOf(t, spec.Blocks[0].File) {
				t.Errorf("at boot it opened %v", got)
			}
			inJail(t, m.Proc.(*launch.Process), h.vmm.Path, append(h.vmm.Kept, d, "/disks"))
			plugInJail(t, h, m, staging)
			plugEveryKind(t, m, filepath.Dir(staging))
			c, err := m.Dial(t.Context(), contract.PortAgent)
			if err != nil {
				t.Fatalf("Dial() = %v", err)
			}
			_ = c.Close() // nothing was sent
		})
	}
}

// plugInJail plugs a file with a name, one that never had one, and one that lost it.
func plugInJail(t *testing.T, h *harness, m *machine, staging string) {
	t.Helper()
	named, gone := file(t, "named"), file(t, "gone")
	if err := errors.Join(os.MkdirAll(staging, 0o700), os.Remove(gone.Name())); err != nil {
		t.Fatal(err)
	}
	unnamed, err := os.OpenFile(filepath.Dir(staging), os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unnamed.Close()
	if _, err := unnamed.WriteString("unnamed"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		b    hypervisor.Block
		want string
	}{
		{hypervisor.Block{ID: "a", File: named, ReadOnly: true}, ""},
		{hypervisor.Block{ID: "b", File: unnamed}, ""},
		{hypervisor.Block{ID: "c", File: gone, ReadOnly: true}, "must have a name on the file system of"},
	} {
		_, err := m.PlugBlock(t.Context(), tt.b)
		if tt.want != "" {
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("PlugBlock(%s) = %v, want %q", tt.b.ID, err, tt.want)
			}
			continue
		}
		r := calls(h.vmm, "vm.add-disk")
		if err != nil || r[len(r)-1].Opened[0] != clhtest.IDOf(t, tt.b.File) ||
			!bytes.Contains(r[len(r)-1].Body, []byte(`"/disks/`+tt.b.ID)) {
			t.Errorf("PlugBlock(%s) = %v, the requests are %+v", tt.b.ID, err, r)
		}
	}
	if left, err := os.ReadDir(staging); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/disks", m.Proc.PID())); err != nil || len(left) > 0 {
		t.Errorf("the VMM is still shown %v, %v", left, err)
	}
}

// inJail looks at the process of a binary by what /proc shows of it. kept is what its root holds.
func inJail(t *testing.T, p *launch.Process, binary string, kept []string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	user := strings.Repeat(fmt.Sprintf("\t%d", testUser), 4)
	const none = "0000000000000000"
	for _, want := range []string{
		"Uid:" + user, "Gid:" + user, "Groups:\t ", "NoNewPrivs:\t1", fmt.Sprintf("NSpid:\t%d\t1", p.PID()),
		"CapInh:\t" + none, "CapPrm:\t" + none, "CapEff:\t" + none, "CapBnd:\t" + none, "CapAmb:\t" + none,
	} {
		if !bytes.Contains(status, []byte("\n"+want+"\n")) {
			t.Errorf("its status has no line %q:\n%s", want, status)
		}
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		its, ierr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
		if err != nil || ierr != nil || its == ours {
			t.Errorf("its %s namespace is %s, ours %s: %v, %v", ns, its, ours, err, ierr)
		}
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID())); err != nil ||
		!bytes.Contains(limits, []byte("Max core file size        0 ")) {
		t.Errorf("its limits are %s, %v", limits, err)
	}
	var maps unix.Stat_t // the kernel gives the files of a process that is not dumpable to root
	err = unix.Stat(fmt.Sprintf("/proc/%d/maps", p.PID()), &maps)
	if private := jail.Private(binary) == nil; err != nil || (maps.Uid == 0) != private {
		t.Errorf("its memory belongs to user %d, %v; it can be hidden: %v", maps.Uid, err, private)
	}
	root := fmt.Sprintf("/proc/%d/root", p.PID())
	var left []string
	err = filepath.WalkDir(root+"/", func(path string, e os.DirEntry, err error) error {
		at := strings.TrimPrefix(path, root)
		for _, k := range kept {
			if at == k {
				return filepath.SkipDir
			}
			if strings.HasPrefix(k, strings.TrimSuffix(at, "/")+"/") {
				return err
			}
		}
		left = append(left, at)
		return err
	})
	if diff := cmp.Diff([]string(nil), left); err != nil || diff != "" {
		t.Errorf("its root holds (-want +got):\n%s%v", diff, err)
	}
}

// plugEveryKind plugs disks of every kind and unplugs them.
func plugEveryKind(t *testing.T, m *machine, dir string) {
	t.Helper()
	for _, b := range disksOfEveryKind(t, dir) {
		if _, err := m.PlugBlock(t.Context(), b); err != nil {
			t.Errorf("PlugBlock(%s) = %v", b.ID, err)
		} else if err := m.UnplugBlock(t.Context(), b.ID); err != nil {
			t.Errorf("UnplugBlock(%s) = %v", b.ID, err)
		}
	}
}

// disksOfEveryKind are files that only root may open, the unnamed one in dir, and a block device where one can be
// made.
func disksOfEveryKind(t *testing.T, dir string) []hypervisor.Block {
	t.Helper()
	written, read := sectors(t), sectors(t)
	readOnly, err := os.Open(read.Name())
	if err != nil {
		t.Fatal(err)
	}
	unnamed, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { readOnly.Close(); unnamed.Close() })
	if err := unnamed.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	disks := []hypervisor.Block{
		{ID: "written", File: written}, {ID: "read", File: readOnly, ReadOnly: true}, {ID: "unnamed", File: unnamed},
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", sectors(t).Name()).Output()
	if err != nil {
		t.Logf("no block device can be made here: %v", err)
		return disks
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", path, err, out)
		}
	})
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	return append(disks, hypervisor.Block{ID: "device", File: device})
}
