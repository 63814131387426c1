// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

const base = "/run/kata-containers/"

// TestMountsOfASpecification: the file systems that engines mount in every container pass with the options
// that containerd, Docker and the kubelet write; everything else is a storage's or nobody's.
func TestMountsOfASpecification(t *testing.T) {
	bind := base + "shared/containers/c-0123456789abcdef-data"
	for _, tc := range []struct {
		kind, source, options string
		ok                    bool
	}{
		{"proc", "proc", "nosuid noexec nodev", true},
		{"proc", "proc", "hidepid=2", true},
		{"sysfs", "sysfs", "nosuid noexec nodev ro", true},
		{"tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k", true},
		{"tmpfs", "tmpfs", "rw,noexec,size=1g,uid=1000 nr_inodes=7 tmpcopyup", true},
		{"devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5", true},
		{"mqueue", "mqueue", "nosuid noexec nodev", true},
		{"cgroup", "cgroup", "nosuid noexec nodev relatime ro", true},
		{"cgroup2", "cgroup2", "rw", true},
		{"bind", bind, "rbind rprivate rw", true},
		{"bind", bind, "bind rro rslave", true},
		{"", bind, "rbind ro", true},
		{"none", bind, "bind", true},
		{"bind", "/dev/null", "rbind ro", true}, // masks a file
		{"none", "/dev/urandom", "bind", true},
		{"bind", "/dev/mem", "rbind", false},
		{"bind", "/dev/./null", "rbind", false},
		{"bind", "/", "rbind", false},
		{"bind", "/etc", "rbind", false},
		{"proc", "/etc", "rbind", false}, // the option makes it a bind mount
		{"bind", bind, "rbind remount", false},
		{"bind", bind, "idmap=uids=0-1-10", false},
		{"bind", bind, "copy-symlink", false},
		{"tmpfs", "tmpfs", "size=1g,context=x", false},
		{"tmpfs", "tmpfs", "usrquota", false},
		{"tmpfs", "tmpfs", "mode=1\x00", false},
		{"proc", "proc", "lowerdir=/", false},
		{"proc", "proc", "size=1", false},
		{"cgroup", "cgroup", "none,name=systemd", false},
		{"sysfs", "sysfs", "mode=7", false},
		{"", "", "", false},
	} {
		m := specs.Mount{Destination: "/d", Type: tc.kind, Source: tc.source, Options: strings.Fields(tc.options)}
		if err := Mounts([]specs.Mount{m}, base+"c"); (err == nil) != tc.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("type %q, source %q, options %q: %v, want ok %v", tc.kind, tc.source, tc.options, err, tc.ok)
		}
	}
	for _, kind := range strings.Fields("overlay virtiofs 9p ext4 xfs btrfs erofs devtmpfs securityfs debugfs tracefs " +
		"bpf configfs rootfs ramfs fuse nfs binfmt_misc efivarfs pstore hugetlbfs nsfs PROC tmpfs\x00") {
		err := Mounts([]specs.Mount{{Destination: "/d", Type: kind, Source: "x"}}, base+"c")
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "/d") {
			t.Errorf("type %s: %v, want a refusal that names the mount", kind, err)
		}
	}
	for _, dest := range []string{"", "d", "../d", "/d\x00"} {
		if err := Mounts([]specs.Mount{{Destination: dest, Type: "proc"}}, base+"c"); err == nil {
			t.Errorf("destination %q is accepted", dest)
		}
	}
}

func TestPlaces(t *testing.T) {
	for p, ok := range map[string]bool{
		base + "shared/containers/x": true, base + "shared/containers/x/y": true, base + "sandbox/shm": true,
		base + "virtual-volumes/abc": true, base + "image/layers": true,
		base + "c/rootfs": true, base + "c/rootfs/a": true,
		base + "c": false, base + "c/": false, base + "c/config.json": false, base + "c/sources/0": false,
		base + "c/rootfsx": false,
		base + "other":     false, base + "other/rootfs": false, base + "other/rootfs/etc": false,
		base + "other/config.json": false,
		base + "shared":            false, base + "shared/containers": false, base + "shared/containers/": false,
		base + "sandbox":                 false,
		base + "sandbox/../other/rootfs": false, base + "shared/../c/config.json": false,
		base + "c/rootfs/../config.json": false,
		base:                             false, "/": false, "": false, "x": false, "run/kata-containers/sandbox/x": false,
		"/run/kata-containers-x/sandbox/y": false,
		base + "cc/rootfs":                 false,
	} {
		if err := Place(p, base+"c"); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("Place(%q) = %v, want ok %v", p, err, ok)
		}
	}
	if err := Place(base+"c/rootfs", base); err == nil {
		t.Error("the sandbox's storages may lie in a bundle")
	}
}

// TestStoragesStayInTheirPlace: mount points, sources of binds and every directory of an overlay.
func TestStoragesStayInTheirPlace(t *testing.T) {
	at := base + "sandbox/x"
	for name, s := range map[string]*agent.Storage{
		"mount point in another bundle":   {Driver: "ephemeral", MountPoint: base + "victim/rootfs/etc"},
		"mount point over the own bundle": {Driver: "ephemeral", MountPoint: base + "c"},
		"bind of another bundle":          {Driver: "bind", Source: base + "victim/config.json", MountPoint: at},
		"bind of another root":            {Driver: "bind", Source: base + "victim/rootfs", MountPoint: at},
		"lower directory": {
			Driver:  "overlayfs",
			Options: []string{"ro,lowerdir=" + base + "sandbox/l:" + base + "victim/rootfs"}, MountPoint: at,
		},
		"upper directory": {Driver: "overlayfs", Options: []string{
			"lowerdir=" + base + "sandbox/l",
			"upperdir=" + base + "victim/rootfs",
		}, MountPoint: at},
		"work directory": {
			Driver: "overlayfs", Options: []string{"workdir=" + base + "victim/rootfs"},
			MountPoint: at,
		},
		"a directory to be made elsewhere": {
			Driver:        "overlayfs",
			DriverOptions: []string{contract.OptionCreateDirectory + base + "victim/x"}, MountPoint: at,
		},
		"everybody's files": {Driver: "ephemeral", MountPoint: base + "shared/containers"},
	} {
		if err := Storages([]*agent.Storage{{Driver: "local", MountPoint: at}, s},
			base+"c"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "storage 1") {
			t.Errorf("%s: %v, want a refusal that names storage 1", name, err)
		}
	}
	good := []*agent.Storage{
		{Driver: "scsi", Source: "0:1", MountPoint: base + "virtual-volumes/abc"},
		{Driver: "overlayfs", MountPoint: base + "c/rootfs", Options: []string{
			"lowerdir=" + base + "virtual-volumes/abc", "upperdir=" + base + "sandbox/upper/c/fs",
			"workdir=" + base + "sandbox/upper/c/work",
		}, DriverOptions: []string{contract.OptionCreateDirectory + base + "sandbox/upper/c/fs"}},
		{Driver: "bind", Source: base + "shared/containers/v", MountPoint: base + "sandbox/subpaths/c-1"},
		{Driver: "virtio-fs", Source: "kataShared", MountPoint: base + "shared/containers/"},
	}
	if err := Storages(good, base+"c"); err != nil {
		t.Error(err)
	}
}

func TestHooksAndNames(t *testing.T) {
	h := []specs.Hook{{Path: "/bin/true"}}
	for _, hooks := range []*specs.Hooks{
		{Prestart: h}, {CreateRuntime: h}, {CreateContainer: h}, {StartContainer: h}, {Poststart: h}, {Poststop: h}, // all
	} {
		if err := Hooks(hooks); !errdefs.IsNotImplemented(err) {
			t.Errorf("Hooks(%+v) = %v", hooks, err)
		}
	}
	if err := Hooks(&specs.Hooks{}); err != nil {
		t.Error(err)
	}
	for name, ok := range map[string]bool{
		"": true, "pod": true, "a-b.c_D0": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false,
		"pod\nhost": false, "a b": false, "-a": false, ".": false, "ä": false, "a/b": false, "a\x00": false,
		"a\x1b[2J": false,
	} {
		if err := Hostname(name); (err == nil) != ok {
			t.Errorf("Hostname(%q) = %v", name, err)
		}
	}
	got := Annotations(map[string]string{
		"run.oci.hooks.stdout": "/etc/x", "run.oci.seccomp_bpf_data": "AAAA", "run.oci.pidfd_receiver": "/run/x",
		"run.oci.handler":           "krun",
		"module.wasm.image/variant": "compat", "org.systemd.property.X": "y", contract.CRIContainerType: "container",
		"devices": "seen",
	})
	if d := cmp.Diff(map[string]string{contract.CRIContainerType: "container", "devices": "seen"}, got); d != "" {
		t.Errorf("annotations (-want +got):\n%s", d)
	}
	if Annotations(nil) != nil {
		t.Error("no annotations have become some")
	}
}
