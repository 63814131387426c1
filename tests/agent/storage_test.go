// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/testvm"
	plan "github.com/coco-shim/coco/plan/rootfs"
)

// disks is what the guest of TestLayers has on its SCSI bus: target 0, one logical unit each.
type disks struct {
	t     *testing.T
	cache *layer.Cache
	dir   string
	args  []string
	n     int
}

func newDisks(t *testing.T) *disks {
	t.Helper()
	c, err := layer.New(filepath.Join(t.TempDir(), "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return &disks{t: t, cache: c, dir: t.TempDir(), args: []string{"-device", "virtio-scsi-pci,id=scsi0"}}
}

// add builds the layer of a directory and attaches a copy of it in which spoil, unless negative,
// is the offset of a flipped byte.
func (d *disks) add(dir string, spoil func(plan.Attached, []byte) int64) plan.Attached {
	d.t.Helper()
	l, err := d.cache.Open(d.t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
	if err != nil {
		d.t.Fatal(err)
	}
	defer l.Close()
	b, err := io.ReadAll(l.File)
	if err != nil {
		d.t.Fatal(err)
	}
	a := plan.Attached{Params: l.Params, Address: hypervisor.BlockAddress{
		Driver: "scsi",
		Source: fmt.Sprintf("0:%d", d.n),
	}}
	if spoil != nil {
		b[spoil(a, b)] ^= 0x01
	}
	d.drive(b, fmt.Sprintf("scsi-hd,scsi-id=0,lun=%d", d.n))
	return a
}

// addBlk is add for a virtio-blk device.
func (d *disks) addBlk(dir string) plan.Attached {
	d.t.Helper()
	a := d.add(dir, nil)
	d.args[len(d.args)-1] = fmt.Sprintf("virtio-blk-pci,addr=0x10,drive=d%d", d.n-1)
	a.Address = hypervisor.BlockAddress{Driver: "blk", Source: "10"}
	return a
}

// drive attaches a disk with some content and returns its logical unit.
func (d *disks) drive(content []byte, device string) int {
	d.t.Helper()
	file := filepath.Join(d.dir, fmt.Sprintf("disk%d", d.n))
	if err := os.WriteFile(file, content, 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.args = append(d.args, "-drive", fmt.Sprintf("file=%s,if=none,id=d%d,format=raw,readonly=on", file, d.n),
		"-device", fmt.Sprintf("%s,drive=d%d", device, d.n))
	d.n++
	return d.n - 1
}

// bottom is a root file system around busybox.
func bottom(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testvm.Need(t, testvm.Busybox)
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	bb, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"bin", "dev", "proc", "sys", "etc", "hidden"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{
		"bin/busybox": bb, "etc/removed": nil, "etc/old": []byte("old\n"),
		"hidden/below": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name := range strings.FieldsSeq("sh true cat ls echo stat mount dd") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// top changes the bottom in every way that a layer can.
func top(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"etc", "hidden"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string]string{"etc/new": "new\n", "etc/old": "changed\n", "hidden/above": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "etc/removed"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "hidden"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLayers(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	d := newDisks(t)
	base := bottom(t)
	lower, upper := d.add(base, nil), d.add(top(t), nil)
	superblock := func(plan.Attached, []byte) int64 { return 1024 + 20 }
	tree := func(a plan.Attached, _ []byte) int64 { return int64(a.HashOffset) + 5 }
	binary := func(_ plan.Attached, b []byte) int64 { return int64(len(b)) / 2 }
	spoiled := map[string]plan.Attached{
		"superblock": d.add(other(t, base, "a"), superblock),
		"hash tree":  d.add(other(t, base, "b"), tree),
	}
	late := d.add(other(t, base, "c"), binary)
	onBlk := d.addBlk(other(t, base, "d"))
	raw := d.drive(bytes.Repeat([]byte("raw data\n"), 4096), fmt.Sprintf("scsi-hd,scsi-id=0,lun=%d", d.n))

	v := boot(t, buildInitrd(t), d.args...)
	if _, err := v.agent.CreateSandbox(within(t, 10*time.Second), &pb.CreateSandboxRequest{SandboxId: "pod"}); err != nil {
		t.Fatalf("CreateSandbox: %v", err)
	}
	t.Run("layers are stacked", func(t *testing.T) { v.testStack(t, upper, lower) })
	t.Run("two containers share layers", func(t *testing.T) { v.testShare(t, upper, lower) })
	t.Run("a layer on virtio-blk", func(t *testing.T) { v.testStack(t, upper, onBlk) })
	t.Run("a disk as a device", func(t *testing.T) { v.testDevice(t, raw, lower) })
	for what, a := range spoiled {
		t.Run("one flipped byte in the "+what, func(t *testing.T) { v.testSpoiled(t, a) })
	}
	t.Run("one flipped byte in a program", func(t *testing.T) { v.testLate(t, late) })
	t.Run("a wrong root hash", func(t *testing.T) {
		lower := lower
		lower.RootHash[3] ^= 1
		v.testSpoiled(t, lower)
	})
	t.Run("a device that is not there", func(t *testing.T) {
		ghost := lower
		ghost.Address.Source = "7:7"
		ghost.RootHash[0] ^= 1
		_, err := v.createOn(t, "ghost", 25*time.Second, ghost)
		if err == nil || !strings.Contains(err.Error(), "7:7") || !strings.Contains(err.Error(), "nothing at this address") {
			t.Errorf("CreateContainer = %v", err)
		}
	})
}

// other is a copy of a directory with one more file, so that it has a root hash of its own.
func other(t *testing.T, dir, name string) string {
	t.Helper()
	to := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", dir+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(to, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// createOn makes a container on layers.
func (v *vm) createOn(t *testing.T, id string, deadline time.Duration, layers ...plan.Attached) (streams, error) {
	t.Helper()
	storages, err := plan.Storages(id, layers, plan.Upper{MiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	sp := spec("sh")
	sp.Root.Path = contract.Rootfs(id)
	s := v.open(t)
	_, err = v.agent.CreateContainer(within(t, deadline), &pb.CreateContainerRequest{
		ContainerId: id, OCI: sp, Storages: storages, StdinPort: s.ports[0], StdoutPort: s.ports[1], StderrPort: s.ports[2],
	})
	return s, err
}

// script feeds a container's shell and returns what it says.
func (v *vm) script(t *testing.T, id string, s streams, text string) (string, int32) {
	t.Helper()
	v.start(t, id)
	_, _ = io.WriteString(s.in, text)
	_ = closeWrite(s.in)
	out, _ := io.ReadAll(s.out)
	e, _ := io.ReadAll(s.err)
	return string(out) + string(e), v.wait(t, id, "")
}

func (v *vm) testStack(t *testing.T, layers ...plan.Attached) {
	begin := time.Now()
	s, err := v.createOn(t, "stack", 30*time.Second, layers...)
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	t.Logf("create with two layers: %v", time.Since(begin))
	got, code := v.script(t, "stack", s, `cat /etc/new /etc/old
ls /etc /hidden
echo w > /etc/written && cat /etc/written
stat -c %a /
`)
	want := "new\nchanged\n/etc:\nnew\nold\n\n/hidden:\nabove\nw\n755\n"
	if got != want || code != 0 {
		t.Errorf("container says %q, exit code %d, want %q", got, code, want)
	}
	v.remove(t, "stack")
}

func (v *vm) testShare(t *testing.T, layers ...plan.Attached) {
	s1, err := v.createOn(t, "share1", 30*time.Second, layers...)
	if err != nil {
		t.Fatal(err)
	}
	s2, err := v.createOn(t, "share2", 30*time.Second, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := v.script(t, "share1", s1, "echo 1 > /mine; cat /mine\n"); got != "1\n" {
		t.Errorf("first container says %q", got)
	}
	v.remove(t, "share1")
	if got, _ := v.script(t, "share2", s2, "cat /mine /etc/new\n"); got != "new\ncat: can't open '/mine': No such file "+
		"or directory\n" {
		t.Errorf("second container says %q", got)
	}
	v.remove(t, "share2")
}

// testDevice gives a container a disk, which has other numbers on the host.
func (v *vm) testDevice(t *testing.T, lun int, layers ...plan.Attached) {
	storages, err := plan.Storages("device", layers, plan.Upper{MiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	sp := spec("sh")
	sp.Root.Path = contract.Rootfs("device")
	sp.Linux.Devices = []*pb.LinuxDevice{{Path: "/dev/data", Type: "b", Major: 259, Minor: 77, FileMode: 0o600}}
	sp.Linux.Resources.Devices = []*pb.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "b", Major: 259, Minor: 77, Access: "r"},
	}
	s := v.open(t)
	if _, err := v.agent.CreateContainer(within(t, 30*time.Second), &pb.CreateContainerRequest{
		ContainerId: "device", OCI: sp, Storages: storages, StdinPort: s.ports[0], StdoutPort: s.ports[1],
		StderrPort: s.ports[2],
		Devices:    []*pb.Device{{Type: "scsi", VmPath: fmt.Sprintf("0:%d", lun), ContainerPath: "/dev/data"}},
	}); err != nil {
		t.Fatal(err)
	}
	if got, _ := v.script(t, "device", s, "dd if=/dev/data bs=9 count=2 2>/dev/null; echo x > "+
		"/dev/data\n"); !strings.HasPrefix(got, "raw data\nraw data\n") || !strings.Contains(got, "not permitted") {
		t.Errorf("container says %q", got)
	}
	v.remove(t, "device")
}

// testSpoiled wants an error that names the layer, and that nothing is left of the container.
func (v *vm) testSpoiled(t *testing.T, a plan.Attached) {
	for range 2 {
		_, err := v.createOn(t, "spoiled", 30*time.Second, a)
		if err == nil {
			t.Fatal("CreateContainer succeeded")
		}
		for _, want := range []string{a.Hex(), contract.LayersDir + "/" + a.Hex(), "corrupted"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("CreateContainer = %v, want an error with %q", err, want)
			}
		}
	}
}

// testLate spoils a block that is first read when the program is run.
func (v *vm) testLate(t *testing.T, a plan.Attached) {
	s, err := v.createOn(t, "late", 30*time.Second, a)
	if err == nil {
		_, err = v.agent.StartContainer(within(t, 30*time.Second), &pb.StartContainerRequest{ContainerId: "late"})
	}
	if err == nil {
		_, _ = io.WriteString(s.in, "echo it runs; cat /bin/busybox > /dev/null && echo all read\n")
		_ = closeWrite(s.in)
		out, _ := io.ReadAll(s.out)
		e, _ := io.ReadAll(s.err)
		if code := v.wait(t, "late", ""); strings.Contains(string(out), "all read") {
			t.Errorf("the spoiled file could be read: exit code %d", code)
		} else {
			t.Logf("exit code %d, output %q %q", code, out, e)
		}
		v.remove(t, "late")
		return
	}
	if !strings.Contains(err.Error(), a.Hex()) {
		t.Errorf("error %v does not name the layer %s", err, a.Hex())
	}
}
