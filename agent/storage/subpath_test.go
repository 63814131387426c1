// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

func TestSubPathsStayInTheirVolume(t *testing.T) {
	g := newGuest(t)
	at := func(name string) string { return filepath.Join(g.root, name) }
	volume := &agent.Storage{
		Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs",
		Options: []string{"mode=2770", "size=1m"}, MountPoint: at("volume"), Shared: true,
	}
	sub := func(name, path string) *agent.Storage {
		return &agent.Storage{
			Driver: "bind", Source: at("volume"), DriverOptions: []string{contract.OptionSubPath + path},
			MountPoint: at("sub/" + name),
		}
	}
	if err := g.Add(t.Context(), "c", []*agent.Storage{volume, sub("dirs", "a/b/c")}); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(at("volume/a/file"), []byte("text"), 0o600),
		os.Symlink("a/file", at("volume/inside")),
		os.Symlink("/etc", at("volume/absolute")),
		os.Symlink("../..", at("volume/a/up")),
		os.Symlink("loop", at("volume/loop")),
		os.WriteFile(at("sub/dirs/f"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(at("volume/a/b")); err != nil || st.Mode() != os.ModeDir|os.ModeSetgid|0o770 {
		t.Errorf("a directory that was made: %v, %v", st, err)
	}
	if _, err := os.Stat(at("volume/a/b/c/f")); err != nil {
		t.Error(err)
	}
	if err := g.Add(t.Context(), "d", []*agent.Storage{sub("file", "inside")}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(at("sub/file")); string(b) != "text" {
		t.Errorf("a file as a sub path: %q, %v", b, err)
	}
	for _, bad := range []string{
		"absolute", "absolute/passwd", "a/up", "a/up/new", "loop", "../x", "/x", "a/../..", ".",
		"", "a//b", "a/file/x",
	} {
		if err := g.Add(t.Context(), "e", []*agent.Storage{sub("bad", bad)}); err == nil {
			t.Errorf("sub path %q is accepted", bad)
		}
	}
	twice := sub("twice", "x")
	twice.DriverOptions = append(twice.DriverOptions, contract.OptionSubPath+"y")
	if err := g.Add(t.Context(), "e", []*agent.Storage{twice}); err == nil {
		t.Error("two sub paths are accepted")
	}
	if err := errors.Join(g.Remove(t.Context(), "d"), g.Remove(t.Context(), "c")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(g.mounted(), " "); got != "/volume" {
		t.Errorf("after the containers have gone %q is mounted, want the volume", got)
	}
	if _, err := os.Stat(at("sub/file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point of a file stays: %v", err)
	}
}

func TestFreshDisksAreAllOrNothing(t *testing.T) {
	g := newGuest(t)
	for name, s := range map[string]*agent.Storage{
		"only a key": {
			Driver: "scsi", Source: "0:0", Fstype: "ext4",
			DriverOptions: []string{contract.OptionEphemeralKey},
		},
		"only a file system": {
			Driver: "scsi", Source: "0:0", Fstype: "ext4",
			DriverOptions: []string{contract.OptionCreateFS},
		},
		"another key": {Driver: "scsi", Source: "0:0", Fstype: "ext4", DriverOptions: []string{
			"encryption_key=abc",
			contract.OptionCreateFS,
		}},
		"xfs": {Driver: "scsi", Source: "0:0", Fstype: "xfs", DriverOptions: []string{
			contract.OptionEphemeralKey,
			contract.OptionCreateFS,
		}},
		"an option": {
			Driver: "scsi", Source: "0:0", Fstype: "ext4", Options: []string{"journal=x"},
			DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		},
		"a mode": {
			Driver: "scsi", Source: "0:0", Fstype: "ext4", Options: []string{"mode=99999"},
			DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		},
		"a tmpfs": {
			Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs",
			DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		},
	} {
		s.MountPoint = filepath.Join(g.root, "v")
		if err := g.Add(t.Context(), "c", []*agent.Storage{s}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
