// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

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
		{
			"erofs without a root hash", change(func(s *agent.Storage) { s.DriverOptions = nil }),
			"without " + contract.VerityRootHash,
		},
		{"half of the verity options", change(func(s *agent.Storage) { s.DriverOptions = s.DriverOptions[:2] }), "missing"},
		{
			"verity on something else", change(func(s *agent.Storage) { s.Driver, s.Fstype = "ephemeral", "tmpfs" }),
			"unknown driver option \"" + contract.VerityPrefix,
		},
		{"a layer that is no disk", change(func(s *agent.Storage) { s.Driver = "bind" }), "mounted from a disk only"},
		{
			"an option of another driver", &agent.Storage{
				Driver: "watchable-bind", Source: at("a"),
				DriverOptions: []string{contract.OptionSubPath + "x"}, MountPoint: at("b"),
			},
			"unknown driver option \"" + contract.OptionSubPath,
		},
		{"a layer on ext4", change(func(s *agent.Storage) { s.Fstype = "ext4" }), "belong to an erofs"},
		{"an unknown driver option", change(func(s *agent.Storage) {
			s.DriverOptions = append(s.DriverOptions, contract.OptionEphemeralKey)
		}), "encryption_key"},
		{"a device that is too small", change(func(s *agent.Storage) {
			p := l.Params
			p.DataBlocks, p.HashOffset = 1<<20, 1<<32
			s.DriverOptions = p.Options()
		}), "data and hash tree need"},
		{"an address that is none", change(func(s *agent.Storage) { s.Source = "0:00" }), "not a SCSI address"},
		{"nothing at the address", change(func(s *agent.Storage) { s.Source = "9:9" }), "nothing at this address"},
		{"tmpfs that is not", &agent.Storage{Driver: "ephemeral", Fstype: "proc", MountPoint: at("a")}, "is not memory"},
		{"an unknown tmpfs option", &agent.Storage{
			Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"usrquota"},
			MountPoint: at("a"),
		}, "usrquota"},
		{
			"overlay of nothing", &agent.Storage{Driver: "overlayfs", Fstype: "overlay", MountPoint: at("a")},
			"without lowerdir",
		},
		{"overlay of the guest's root", &agent.Storage{
			Driver: "overlayfs", Options: []string{"lowerdir=/"},
			MountPoint: at("a"),
		}, "lowerdir"},
		{"overlay with half an upper", &agent.Storage{Driver: "overlayfs", Options: []string{
			"lowerdir=" + at("a"),
			"upperdir=" + at("u"),
		}, MountPoint: at("a")}, "only one of"},
		{"bind of the guest's root", &agent.Storage{Driver: "bind", Source: "/", MountPoint: at("a")}, "source"},
		{
			"bind through a symbolic link", &agent.Storage{Driver: "bind", Source: at("out/etc"), MountPoint: at("a")},
			"source",
		},
		{
			"a volume of an unknown kind", &agent.Storage{Driver: "scsi", Source: "0:0", Fstype: "vfat", MountPoint: at("a")},
			"not supported on block devices",
		},
		{"a journal elsewhere", &agent.Storage{
			Driver: "scsi", Source: "0:0", Fstype: "ext4",
			Options: []string{"noatime,journal_path=/dev/mapper/x"}, MountPoint: at("a"),
		}, "journal_path"},
		{"a log elsewhere", &agent.Storage{
			Driver: "scsi", Source: "0:0", Fstype: "xfs", Options: []string{"logdev=/dev/sdb"},
			MountPoint: at("a"),
		}, "logdev"},
		{"another device", &agent.Storage{
			Driver: "blk", Source: "/dev/vda", Fstype: "btrfs",
			Options: []string{"device=/dev/sdb"}, MountPoint: at("a"),
		}, "device="},
		{"another source", &agent.Storage{
			Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"source=/dev/sdb"},
			MountPoint: at("a"),
		}, "source"},
		{"what the host shares, in a TEE", &agent.Storage{
			Driver: contract.DriverVirtioFS, Source: "live", Fstype: "virtiofs",
			MountPoint: at("tee/a"),
		}, "in a TEE"},
		{"a strange tag", &agent.Storage{Driver: contract.DriverVirtioFS, Source: "../x", MountPoint: at("a")}, "tag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g.HostFiles = func() bool { return !strings.HasSuffix(tc.name, "in a TEE") }
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

func TestMemoryLocalAndBind(t *testing.T) {
	g := newGuest(t)
	at := func(p string) string { return g.root + "/" + p }
	err := g.Add(t.Context(), "c", []*agent.Storage{
		{
			Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"nosuid,size=1m", "mode=0750", "fsgid=77"},
			MountPoint: at("e"),
		},
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
	if err := errors.Join(os.MkdirAll(dir+"/d/e", 0o700), os.WriteFile(dir+"/d/f", nil, 0o600),
		os.Symlink("/etc/passwd", dir+"/l")); err != nil {
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
		d := filepath.Join(g.root, contract.LayersName, strings.Repeat("0", 61)+fmt.Sprintf("%03d", i))
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
			Options: []string{
				"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper + "/fs",
				"workdir=" + upper + "/work",
			},
			DriverOptions: []string{
				contract.OptionCreateDirectory + upper + "/fs",
				contract.OptionCreateDirectory + upper + "/work",
			},
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

// TestTheTableOfDrivers: the list for the host has the registered drivers, sorted; a disk can be given as a device too.
func TestTheTableOfDrivers(t *testing.T) {
	want := []string{
		"bind", "blk", "ephemeral", contract.DriverPull, "local", "mmioblk", "overlayfs", "scsi", "virtio-fs",
		"watchable-bind",
	}
	if got := Drivers(); !slices.Equal(got, want) {
		t.Errorf("Drivers() = %v, want %v", got, want)
	}
	if got, want := DeviceTypes(), []string{"blk", "mmioblk", "scsi"}; !slices.Equal(got, want) {
		t.Errorf("DeviceTypes() = %v, want %v", got, want)
	}
	for name, d := range drivers {
		if d.mount == nil {
			t.Errorf("driver %s mounts nothing", name)
		}
		if absent[name] != "" {
			t.Errorf("driver %s is there and absent", name)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a driver was registered twice")
		}
	}()
	register("bind", driver{})
}

// TestDriversOfTheProtocolThatAreAbsent: each is refused by its name and with what to do instead, and is not
// announced; a directory that a host wants watched is shown as it is.
func TestDriversOfTheProtocolThatAreAbsent(t *testing.T) {
	g := newGuest(t)
	at := func(p string) string { return g.root + "/" + p }
	for _, driver := range []string{"erofs.multi-layer", "nvdimm", "blk-ccw", "vfio"} {
		err := g.Add(t.Context(), "c", []*agent.Storage{{Driver: driver, Source: "x", Fstype: "ext4", MountPoint: at("a")}})
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), driver) || slices.Contains(Drivers(), driver) {
			t.Errorf("%s: %v, want a refusal by name", driver, err)
		}
		err = g.Devices(t.Context(), "c", []*agent.Device{{Type: driver, VmPath: "x", ContainerPath: "/dev/x"}},
			&specs.Spec{Linux: &specs.Linux{}})
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), driver) ||
			slices.Contains(DeviceTypes(), driver) {
			t.Errorf("device of type %s: %v, want a refusal by name", driver, err)
		}
	}
	for _, source := range []string{"02/00", "../vda", ""} {
		err := g.Add(t.Context(), "c",
			[]*agent.Storage{{Driver: "mmioblk", Source: source, Fstype: "ext4", MountPoint: at("a")}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("mmioblk at %q: %v", source, err)
		}
	}
	if err := os.MkdirAll(at("shared/config"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := &agent.Storage{
		Driver: contract.DriverWatchableBind, Source: at("shared/config"), Fstype: "bind",
		Options: []string{"ro"}, MountPoint: at("shared/watchable/config"),
	}
	if err := g.Add(t.Context(), "c", []*agent.Storage{w}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("shared/config/key"), []byte("later"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.read("shared/watchable/config/key"); got != "later" {
		t.Errorf("the watched directory shows %q", got)
	}
}
