// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/virtcontainers/storage"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a Manager over a directory, with a sysfs that tests fill.
type guest struct {
	*Manager
	t     *testing.T
	disks int
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	g := &guest{Manager: New(t.TempDir()), t: t}
	g.sys = t.TempDir()
	g.write("class/scsi_host/host0/scan", "")
	g.openVerity = openLoop
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if m := g.mounted(); len(m) > 0 {
			t.Errorf("still mounted: %v", m)
		}
	})
	return g
}

func (g *guest) write(name, text string) {
	g.t.Helper()
	p := filepath.Join(g.sys, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
		g.t.Fatal(err)
	}
}

// mounted lists the mounts below the root.
func (g *guest) mounted() []string {
	g.t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(g.root))
	if err != nil {
		g.t.Fatal(err)
	}
	var out []string
	for _, i := range infos {
		out = append(out, strings.TrimPrefix(i.Mountpoint, g.root))
	}
	return out
}

// loopDevice is a loop device that stands for both the disk and the verity device over it. Opening
// verifies everything, which the kernel would do block by block.
type loopDevice struct {
	path    string
	corrupt bool
}

func (l loopDevice) Corrupted() (bool, error) { return l.corrupt, nil }
func (l loopDevice) Close() error             { return nil }

func openLoop(_ string, p verity.Params, disk string) (verityDevice, string, error) {
	path := "/dev/loop" + strings.TrimPrefix(disk, "7:")
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	var bad *verity.CorruptError
	if err := verity.Verify(context.Background(), f, p); err != nil && !errors.As(err, &bad) {
		return nil, "", err
	}
	return loopDevice{path, bad != nil}, path, nil
}

// disk attaches a file as SCSI disk 0:n and returns its address.
func (g *guest) disk(file string) hypervisor.BlockAddress {
	g.t.Helper()
	out, err := exec.CommandContext(g.t.Context(), "losetup", "--find", "--show", "--read-only", file).Output()
	if err != nil {
		g.t.Skipf("needs loop devices: %v", err)
	}
	path := strings.TrimSpace(string(out))
	g.t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "losetup", "--detach", path).CombinedOutput(); err != nil {
			g.t.Errorf("losetup: %v: %s", err, out)
		}
	})
	n := g.disks
	g.disks++
	name := filepath.Base(path)
	g.write(fmt.Sprintf("bus/scsi/devices/0:0:0:%d/block/%s/x", n, name), "")
	g.write(fmt.Sprintf("bus/scsi/devices/0:0:0:%d/delete", n), "")
	g.write("class/block/"+name+"/dev", "7:"+strings.TrimPrefix(name, "loop")+"\n")
	st, err := os.Stat(file)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write("class/block/"+name+"/size", fmt.Sprint(st.Size()/512))
	return hypervisor.BlockAddress{Driver: "scsi", Source: fmt.Sprintf("0:%d", n)}
}

// layer builds a layer with one file and attaches it.
func (g *guest) layer(name, content string) storage.Attached {
	g.t.Helper()
	dir := g.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		g.t.Fatal(err)
	}
	c, err := layer.New(filepath.Join(g.t.TempDir(), "cache"))
	if err != nil {
		g.t.Fatal(err)
	}
	l, err := c.Open(g.t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
	if err != nil {
		g.t.Fatal(err)
	}
	defer l.Close()
	b, err := io.ReadAll(l.File)
	if err != nil {
		g.t.Fatal(err)
	}
	file := filepath.Join(g.t.TempDir(), name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		g.t.Fatal(err)
	}
	return storage.Attached{Params: l.Params, Address: g.disk(file)}
}

// storages is what the host sends, moved below the test's root.
func (g *guest) storages(cid string, layers ...storage.Attached) []*agent.Storage {
	g.t.Helper()
	ss, err := storage.Storages(cid, layers, 4)
	if err != nil {
		g.t.Fatal(err)
	}
	move := func(s string) string { return strings.ReplaceAll(s, storage.GuestRoot, g.root) }
	for _, s := range ss {
		s.MountPoint = move(s.MountPoint)
		for i := range s.Options {
			s.Options[i] = move(s.Options[i])
		}
		for i := range s.DriverOptions {
			s.DriverOptions[i] = move(s.DriverOptions[i])
		}
	}
	return ss
}

func (g *guest) read(name string) string {
	b, err := os.ReadFile(filepath.Join(g.root, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestAContainersRootFileSystem(t *testing.T) {
	g := newGuest(t)
	top, low := g.layer("top", "t"), g.layer("low", "l")
	if err := g.Add(t.Context(), "c1", g.storages("c1", top, low)); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(t.Context(), "c2", g.storages("c2", top, low)); err != nil {
		t.Fatal(err)
	}
	if got := g.read("c1/rootfs/top") + g.read("c2/rootfs/low"); got != "tl" {
		t.Errorf("content %q", got)
	}
	if err := os.WriteFile(filepath.Join(g.root, "c1/rootfs/mine"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if n := len(g.mounted()); n != 6 {
		t.Errorf("%d mounts, want 2 layers, 2 upper and 2 overlays: %v", n, g.mounted())
	}
	if err := g.Remove(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if n := len(g.mounted()); n != 4 {
		t.Errorf("%d mounts after the first container, want 4: %v", n, g.mounted())
	}
	if got := g.read("c2/rootfs/top"); got != "t" {
		t.Errorf("the other container lost its layer: %q", got)
	}
	if err := g.Remove(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
	if err := g.Remove(t.Context(), "c2"); err != nil {
		t.Errorf("Remove again = %v", err)
	}
	if err := g.Add(t.Context(), "c3", g.storages("c3", low)); err != nil {
		t.Errorf("a layer cannot be mounted again: %v", err)
	}
}

func TestManyContainersAtOnceShareALayer(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	var wg sync.WaitGroup
	for i := range 8 {
		ss := g.storages(fmt.Sprintf("c%d", i), l)
		wg.Go(func() {
			for range 5 {
				if err := g.Add(t.Context(), fmt.Sprintf("c%d", i), ss); err != nil {
					t.Error(err)
				}
				if got := g.read(fmt.Sprintf("c%d/rootfs/f", i)); got != "x" {
					t.Errorf("container %d reads %q", i, got)
				}
				if err := g.Remove(t.Context(), fmt.Sprintf("c%d", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
}

func TestAFailureUndoesTheRest(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	good := g.storages("c1", l)
	for i := range good {
		ss := g.storages("c1", l)
		ss[i].Options = append(ss[i].Options, "nonsense=1")
		err := g.Add(t.Context(), "c1", ss)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), ss[i].MountPoint) {
			t.Errorf("storage %d: Add = %v, want an error that names %s", i, err, ss[i].MountPoint)
		}
		if m := g.mounted(); len(m) != 0 {
			t.Errorf("storage %d: still mounted: %v", i, m)
		}
	}
	if err := g.Add(t.Context(), "c1", good); err != nil {
		t.Error(err)
	}
	// Another container's failure leaves the shared layer alone.
	bad := g.storages("c2", l)
	bad[1].Fstype = "ext4"
	if err := g.Add(t.Context(), "c2", bad); err == nil {
		t.Error("Add of a tmpfs of type ext4 succeeded")
	}
	if got := g.read("c1/rootfs/f"); got != "x" {
		t.Errorf("the first container reads %q", got)
	}
}

func TestACorruptLayerIsNamed(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	l.RootHash[5] ^= 1
	err := g.Add(t.Context(), "c1", g.storages("c1", l))
	var corrupt *CorruptLayerError
	if !errors.As(err, &corrupt) || corrupt.RootHash != l.Hex() || !strings.Contains(err.Error(), "/virtual-volumes/"+l.Hex()) {
		t.Errorf("Add = %v, want a CorruptLayerError", err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
}

func TestCorruptionThatIsFoundLater(t *testing.T) {
	g := newGuest(t)
	if err := g.Add(t.Context(), "c1", g.storages("c1", g.layer("f", "x"))); err != nil {
		t.Fatal(err)
	}
	if err := g.Corrupted("c1"); err != nil {
		t.Errorf("Corrupted = %v", err)
	}
	for _, mt := range g.mounts {
		if mt.verity != nil {
			mt.verity.device = loopDevice{corrupt: true}
		}
	}
	var corrupt *CorruptLayerError
	if err := g.Corrupted("c1"); !errors.As(err, &corrupt) {
		t.Errorf("Corrupted = %v", err)
	}
	if err := g.Corrupted("c2"); err != nil {
		t.Errorf("Corrupted of another container = %v", err)
	}
}

func TestStoragesThatAreRefused(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	at := func(p string) string { return g.root + "/" + p }
	if err := os.Symlink("/", at("out")); err != nil {
		t.Fatal(err)
	}
	good := func() *agent.Storage { return g.storages("c", l)[0] }
	change := func(f func(*agent.Storage)) *agent.Storage { s := good(); f(s); return s }
	for _, tc := range []struct {
		name string
		s    *agent.Storage
		want string
	}{
		{"nothing", nil, "empty"},
		{"an unknown driver", &agent.Storage{Driver: "nvme", MountPoint: at("a")}, "unknown storage driver"},
		{"a mount point elsewhere", change(func(s *agent.Storage) { s.MountPoint = "/etc" }), "not a plain path below"},
		{"the root itself", change(func(s *agent.Storage) { s.MountPoint = g.root }), "not a plain path below"},
		{"a way out", change(func(s *agent.Storage) { s.MountPoint = at("x/../../y") }), "not a plain path below"},
		{"a symbolic link on the way", change(func(s *agent.Storage) { s.MountPoint = at("out/tmp/x") }), "mkdir"},
		{"erofs without a root hash", change(func(s *agent.Storage) { s.DriverOptions = nil }), "without coco.verity.root_hash"},
		{"half of the verity options", change(func(s *agent.Storage) { s.DriverOptions = s.DriverOptions[:2] }), "missing"},
		{"verity on something else", change(func(s *agent.Storage) { s.Driver = "ephemeral" }), "belong to an erofs"},
		{"a layer on ext4", change(func(s *agent.Storage) { s.Fstype = "ext4" }), "belong to an erofs"},
		{"an unknown driver option", change(func(s *agent.Storage) { s.DriverOptions = append(s.DriverOptions, "encryption_key=ephemeral") }), "encryption_key"},
		{"a device that is too small", change(func(s *agent.Storage) {
			p := l.Params
			p.DataBlocks, p.HashOffset = 1<<20, 1<<32
			s.DriverOptions = p.Options()
		}), "data and hash tree need"},
		{"an address that is none", change(func(s *agent.Storage) { s.Source = "0:00" }), "not a SCSI address"},
		{"nothing at the address", change(func(s *agent.Storage) { s.Source = "9:9" }), "nothing at this address"},
		{"tmpfs that is not", &agent.Storage{Driver: "ephemeral", Fstype: "proc", MountPoint: at("a")}, "is not memory"},
		{"an unknown tmpfs option", &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"usrquota"}, MountPoint: at("a")}, "usrquota"},
		{"overlay of nothing", &agent.Storage{Driver: "overlayfs", Fstype: "overlay", MountPoint: at("a")}, "without lowerdir"},
		{"overlay of the guest's root", &agent.Storage{Driver: "overlayfs", Options: []string{"lowerdir=/"}, MountPoint: at("a")}, "lowerdir"},
		{"overlay with half an upper", &agent.Storage{Driver: "overlayfs", Options: []string{"lowerdir=" + at("a"), "upperdir=" + at("u")}, MountPoint: at("a")}, "only one of"},
		{"bind of the guest's root", &agent.Storage{Driver: "bind", Source: "/", MountPoint: at("a")}, "source"},
		{"bind through a symbolic link", &agent.Storage{Driver: "bind", Source: at("out/etc"), MountPoint: at("a")}, "source"},
		{"a volume of an unknown kind", &agent.Storage{Driver: "scsi", Source: "0:0", Fstype: "vfat", MountPoint: at("a")}, "not supported on block devices"},
		{"a strange tag", &agent.Storage{Driver: "virtio-fs", Source: "../x", MountPoint: at("a")}, "tag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := g.Add(t.Context(), "c", []*agent.Storage{tc.s})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Add = %v, want an error with %q", err, tc.want)
			}
			if m := g.mounted(); len(m) != 0 {
				t.Errorf("still mounted: %v", m)
			}
		})
	}
}

func TestAnotherStorageAtTheSamePlaceIsRefused(t *testing.T) {
	g := newGuest(t)
	s := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=1m"}, MountPoint: g.root + "/t"}
	if err := g.Add(t.Context(), "a", []*agent.Storage{s}); err != nil {
		t.Fatal(err)
	}
	other := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=2m"}, MountPoint: g.root + "/t"}
	if err := g.Add(t.Context(), "b", []*agent.Storage{other}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Add = %v, want ALREADY_EXISTS", err)
	}
}

func TestSharedStoragesOutliveTheirContainer(t *testing.T) {
	g := newGuest(t)
	s := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: g.root + "/t", Shared: true}
	if err := g.Add(t.Context(), "a", []*agent.Storage{s}); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if len(g.mounted()) != 1 {
		t.Error("a shared storage went with its container")
	}
}

func TestMemoryLocalAndBind(t *testing.T) {
	g := newGuest(t)
	at := func(p string) string { return g.root + "/" + p }
	err := g.Add(t.Context(), "c", []*agent.Storage{
		{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"nosuid,size=1m", "mode=0750", "fsgid=77"}, MountPoint: at("e")},
		{Driver: "local", Options: []string{"mode=0711", "fsgid=78"}, MountPoint: at("l")},
		{Driver: "bind", Source: at("e"), Options: []string{"rbind", "ro"}, MountPoint: at("b")},
		{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: at("g"), FsGroup: &agent.FSGroup{GroupId: 79}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("e/f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.read("b/f"); got != "x" {
		t.Errorf("bind shows %q", got)
	}
	if err := os.WriteFile(at("b/g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only bind = %v", err)
	}
	for path, want := range map[string]string{"e": "2770 77", "l": "2771 78", "g": "3777 79"} {
		var st unix.Stat_t
		if err := unix.Stat(at(path), &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%o %d", st.Mode&0o7777, st.Gid); got != want {
			t.Errorf("%s has mode and group %s, want %s", path, got, want)
		}
	}
}

func TestFSGroupReachesEverything(t *testing.T) {
	g := newGuest(t)
	dir := filepath.Join(g.root, "v")
	if err := errors.Join(os.MkdirAll(dir+"/d/e", 0o700), os.WriteFile(dir+"/d/f", nil, 0o600), os.Symlink("/etc/passwd", dir+"/l")); err != nil {
		t.Fatal(err)
	}
	if err := g.applyFSGroup(dir, &agent.FSGroup{GroupId: 4321}); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]uint32{"": 0o2770, "/d": 0o2770, "/d/e": 0o2770, "/d/f": 0o660} {
		var st unix.Stat_t
		if err := unix.Lstat(dir+path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Gid != 4321 || st.Mode&mode != mode {
			t.Errorf("%s has group %d and mode %o", path, st.Gid, st.Mode)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat("/etc/passwd", &st); err != nil || st.Gid == 4321 {
		t.Errorf("a symbolic link was followed (%v)", err)
	}
}

func TestAnOverlayOfManyLayers(t *testing.T) {
	g := newGuest(t)
	var lower []string
	for i := range 120 {
		d := filepath.Join(g.root, "virtual-volumes", strings.Repeat("0", 61)+fmt.Sprintf("%03d", i))
		if err := errors.Join(os.MkdirAll(d, 0o755), os.WriteFile(fmt.Sprintf("%s/f%d", d, i), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, d)
	}
	if err := os.Chmod(lower[0], 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(lower[0], 12, 34); err != nil {
		t.Fatal(err)
	}
	upper := g.root + "/sandbox/upper/c"
	err := g.Add(t.Context(), "c", []*agent.Storage{
		{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: upper},
		{
			Driver: "overlayfs", Fstype: "overlay", MountPoint: g.root + "/c/rootfs",
			Options:       []string{"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper + "/fs", "workdir=" + upper + "/work"},
			DriverOptions: []string{createDirectory + upper + "/fs", createDirectory + upper + "/work"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(g.root + "/c/rootfs")
	if err != nil || len(entries) != 120 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(g.root+"/c/rootfs", &st); err != nil || st.Mode&0o7777 != 0o751 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("root has mode %o, owner %d:%d (%v), want those of the top layer", st.Mode&0o7777, st.Uid, st.Gid, err)
	}
}

func TestHugePages(t *testing.T) {
	g := newGuest(t)
	g.write("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n")
	mt := &mounted{}
	o, err := parseOptions([]string{"pagesize=2Mi", "size=8m"})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.reserveHugePages(mt, o); err != nil {
		t.Fatal(err)
	}
	count := func() int64 {
		n, err := readInt(filepath.Join(g.sys, "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 7 {
		t.Errorf("%d huge pages, want 7", n)
	}
	if err := mt.undo.Run(t.Context()); err != nil || count() != 3 {
		t.Errorf("after undo: %d huge pages, %v, want 3", count(), err)
	}
	o.data = []string{"pagesize=2M", "size=3m"}
	if err := g.reserveHugePages(mt, o); !errdefs.IsInvalidArgument(err) {
		t.Errorf("reserveHugePages of one and a half pages = %v", err)
	}
}

func TestDevicesGetTheGuestsNumbers(t *testing.T) {
	g := newGuest(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a := g.disk(file)
	number, err := g.describe(filepath.Base(firstEntry(t, filepath.Join(g.sys, "bus/scsi/devices/0:0:0:0/block"))))
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseNumber(number.number)
	if err != nil {
		t.Fatal(err)
	}
	spec := &agent.Spec{Linux: &agent.Linux{
		Devices:   []*agent.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 259, Minor: 4}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3}},
		Resources: &agent.LinuxResources{Devices: []*agent.LinuxDeviceCgroup{{Type: "b", Major: 259, Minor: 4}, {Type: "c", Major: 259, Minor: 4}, {Allow: false}}},
	}}
	dev := &agent.Device{Type: "scsi", VmPath: a.Source, ContainerPath: "/dev/x"}
	if err := g.Devices(t.Context(), "c", []*agent.Device{dev}, spec); err != nil {
		t.Fatal(err)
	}
	rules := spec.Linux.Resources.Devices
	got := []number2{{spec.Linux.Devices[0].Major, spec.Linux.Devices[0].Minor}, {rules[0].Major, rules[0].Minor}, {rules[1].Major, rules[1].Minor}}
	if diff := cmp.Diff([]number2{{want.major, want.minor}, {want.major, want.minor}, {259, 4}}, got); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
	for _, bad := range []*agent.Device{
		{Type: "vfio-pci", ContainerPath: "/dev/x"}, {Type: "scsi", VmPath: "0:0", ContainerPath: "/dev/other"},
		{Type: "scsi", VmPath: "0:0", ContainerPath: "/dev/null"}, {Type: "blk", VmPath: "../x", ContainerPath: "/dev/x"},
	} {
		if err := g.Devices(t.Context(), "c", []*agent.Device{bad}, spec); err == nil {
			t.Errorf("Devices(%v) succeeded", bad)
		}
	}
	if err := g.Remove(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(g.sys, "bus/scsi/devices/0:0:0:0/delete")); !bytes.HasPrefix(b, []byte("1")) {
		t.Error("the container's disk was not let go")
	}
}

type number2 struct{ Major, Minor int64 }

func firstEntry(t *testing.T, dir string) string {
	t.Helper()
	name, err := onlyEntry(dir)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPCIPaths(t *testing.T) {
	m := New("/r")
	m.sys = t.TempDir()
	dir := filepath.Join(m.sys, "devices/pci0000:00/0000:00:02.0/0000:01:00.0/virtio3/block/vda")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"02/00": "vda", "02.0/00.0": "vda", "02": "", "03/00": ""} {
		find, err := m.blkFinder(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := find(); got != want || (err == nil) != (want != "") {
			t.Errorf("PCI path %s = %q, %v, want %q", path, got, err, want)
		}
	}
	for _, bad := range []string{"", "2", "02/", "../02", "02/*", "/dev/../sda", "/dev/", strings.Repeat("02/", 9) + "02"} {
		if _, err := m.blkFinder(bad); err == nil {
			t.Errorf("PCI path %q is accepted", bad)
		}
	}
}

func TestWaitingEndsWithAnEventOrTheContext(t *testing.T) {
	if _, err := os.Stat("/sys/class/block/loop0/uevent"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and a loop device to make an event with")
	}
	scanned := make(chan struct{}, 10)
	appears := false
	name, err := waitFor(t.Context(), func() error {
		scanned <- struct{}{}
		return nil
	}, func() (string, error) {
		if appears {
			return "disk", nil
		}
		select {
		case <-scanned: // the device appears after the scan, with an event
			appears = true
			if err := os.WriteFile("/sys/class/block/loop0/uevent", []byte("change"), 0); err != nil {
				return "", err
			}
		default:
		}
		return "", os.ErrNotExist
	})
	if name != "disk" || err != nil {
		t.Errorf("waitFor = %q, %v", name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = waitFor(ctx, func() error { return nil }, func() (string, error) { return "", os.ErrNotExist })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not appear") {
		t.Errorf("waitFor = %v", err)
	}
}

func TestShutdownClosesTheDoor(t *testing.T) {
	g := newGuest(t)
	if err := g.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &agent.Storage{Driver: "local", MountPoint: g.root + "/l"}
	if err := g.Add(t.Context(), "", []*agent.Storage{s}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Add after Shutdown = %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "12": 12, "2k": 2048, "2Ki": 2048, "2KiB": 2048, "3M": 3 << 20, "1g": 1 << 30} {
		if got, err := parseSize(in); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "k", "-1", "1x", "1kk", "99999999999g", "1 m"} {
		if _, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) succeeded", in)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("ro,nosuid\nsize=1m,mode=0700\nfsgid=5")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOptions(strings.Split(s, "\n"))
		if err != nil {
			return
		}
		if strings.ContainsRune(o.joined(), 0) || len(o.data) > maxOptions {
			t.Fatalf("options %q", o.data)
		}
		if mode, err := o.takeMode(0); err == nil && mode > 0o7777 {
			t.Fatalf("mode %o", mode)
		}
		if id, _, err := o.takeID("fsgid"); err == nil && id < 0 {
			t.Fatalf("id %d", id)
		}
		v, _, _ := o.take("size")
		_, _ = parseSize(v) // must not panic
	})
}

func FuzzAddresses(f *testing.F) {
	f.Add("1:2")
	f.Add("02/00")
	f.Add("/dev/vda")
	f.Add("/run/kata-containers/a/../b")
	m := New(Root)
	f.Fuzz(func(t *testing.T, s string) {
		if a, b, err := parseSCSI(s); err == nil && fmt.Sprintf("%d:%d", a, b) != s {
			t.Fatalf("SCSI address %q = %d:%d", s, a, b)
		}
		if _, err := m.blkFinder(s); err == nil && strings.Contains(s, "..") {
			t.Fatalf("disk address %q is accepted", s)
		}
		if c, err := m.clean(s); err == nil && (!strings.HasPrefix(c, Root+"/") || strings.Contains(c, "/../")) {
			t.Fatalf("path %q became %q", s, c)
		}
	})
}
