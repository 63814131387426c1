// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/bzimage"
	"github.com/coco-shim/coco/plan/launch"
)

var content = map[string]string{
	"kernel": strings.Repeat("k", bzimage.HeadSize+1), "initrd": "initrd",
	"firmware": "IGVM file",
}

func chain(t *testing.T) configs.BootFiles {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return configs.BootFiles{
		Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Firmware: filepath.Join(dir, "firmware"),
		Cmdline: "quiet",
	}
}

func open(t *testing.T, files configs.BootFiles) hypervisor.Boot {
	t.Helper()
	boot, err := Open(files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := Close(boot); err != nil {
				t.Error(err)
			}
		}
	})
	return boot
}

func TestAChainIsReadWithoutMovingOffsets(t *testing.T) {
	files := chain(t)
	boot := open(t, files)
	if boot.Cmdline != "quiet" {
		t.Errorf("Open() has command line %q", boot.Cmdline)
	}
	heads, err := Look(boot)
	if err != nil {
		t.Fatal(err)
	}
	wantHeads := launch.Heads{
		Kernel: launch.Head{
			Name: files.Kernel, Size: bzimage.HeadSize + 1,
			Bytes: []byte(content["kernel"][:bzimage.HeadSize]),
		},
		Initrd:   launch.Head{Name: files.Initrd, Size: 6, Bytes: []byte{}},
		Firmware: launch.Head{Name: files.Firmware, Size: 9, Bytes: []byte("IGVM")},
	}
	if d := cmp.Diff(wantHeads, heads); d != "" {
		t.Errorf("Look() (-want +got):\n%s", d)
	}
	got, err := Read(t.Context(), boot)
	if err != nil {
		t.Fatal(err)
	}
	want := launch.Chain{
		Firmware: []byte(content["firmware"]), Kernel: sha256.Sum256([]byte(content["kernel"])),
		Initrd: sha256.Sum256([]byte(content["initrd"])),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Read() (-want +got):\n%s", d)
	}
	for _, f := range Files(boot) {
		if at, err := f.Seek(0, io.SeekCurrent); at != 0 || err != nil {
			t.Errorf("the offset of %s is %d, %v", f.Name(), at, err)
		}
	}
}

func TestAChainWithoutAnInitrd(t *testing.T) {
	files := chain(t)
	files.Initrd = ""
	boot := open(t, files)
	heads, err := Look(boot)
	if err != nil || heads.Initrd.Name != "" {
		t.Errorf("Look() = %+v, %v, want no initrd", heads.Initrd, err)
	}
	if c, err := Read(t.Context(), boot); err != nil || c.Initrd != sha256.Sum256(nil) {
		t.Errorf("Read() has initrd %x, %v, want the digest of nothing", c.Initrd, err)
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	files := chain(t)
	missing := files
	missing.Firmware = "/nonexistent"
	if _, err := Open(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open() of a missing firmware = %v", err)
	}
	endless := files
	endless.Kernel = "/dev/zero"
	boot := open(t, endless)
	if _, err := Look(boot); err == nil || !strings.Contains(err.Error(), "kernel /dev/zero: is not a regular file") {
		t.Errorf("Look() at /dev/zero = %v", err)
	}
	if _, err := Read(t.Context(), boot); err == nil ||
		!strings.Contains(err.Error(), "/dev/zero: is not a regular file") {
		t.Errorf("Read() of /dev/zero = %v", err)
	}
	if err := os.Truncate(files.Firmware, maxFirmware+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), open(t, files)); err == nil ||
		!strings.Contains(err.Error(), "has 67108865 bytes, more than 67108864") {
		t.Errorf("Read() of a large firmware = %v", err)
	}
}

func TestReadingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the pod is gone")
	cancel(gone)
	if _, err := Read(ctx, open(t, chain(t))); !errors.Is(err, gone) {
		t.Errorf("Read() = %v, want %v", err, gone)
	}
}
