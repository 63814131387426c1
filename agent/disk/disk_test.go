// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAddressesThatAreNone: each kind refuses what is not its own, before it looks at any file.
func TestAddressesThatAreNone(t *testing.T) {
	f := Finder{Sys: "/nowhere"}
	for _, bad := range []string{"", "x", "1", "00:1", "1:16384", "256:0", "1:2:3", "-1:0"} {
		if _, err := f.SCSI(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("SCSI(%q) = %v", bad, err)
		}
	}
	for _, bad := range []string{"", "02/00", "/dev/", "/dev/../vda", "vda"} {
		if _, err := f.Named(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Named(%q) = %v", bad, err)
		}
	}
	boom := errors.New("no such module")
	f.Load = func(string, ...string) error { return boom }
	if _, err := f.Virtio("02"); !errors.Is(err, boom) {
		t.Errorf("Virtio without a driver = %v", err)
	}
}

func TestPCIPaths(t *testing.T) {
	f := Finder{Sys: t.TempDir()}
	dir := filepath.Join(f.Sys, "devices/pci0000:00/0000:00:02.0/0000:01:00.0/virtio3/block/vda")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"02/00": "vda", "02.0/00.0": "vda", "02": "", "03/00": ""} {
		find, err := f.virtio(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := find(); got != want || (err == nil) != (want != "") {
			t.Errorf("PCI path %s = %q, %v, want %q", path, got, err, want)
		}
	}
	for _, bad := range []string{
		"", "2", "02/", "../02", "02/*", "/dev/../sda", "/dev/",
		strings.Repeat("02/", 9) + "02",
	} {
		if _, err := f.virtio(bad); err == nil {
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

func FuzzAddresses(f *testing.F) {
	f.Add("1:2")
	f.Add("02/00")
	f.Add("/dev/vda")
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		if a, b, err := parseSCSI(s); err == nil && fmt.Sprintf("%d:%d", a, b) != s {
			t.Fatalf("SCSI address %q = %d:%d", s, a, b)
		}
		if _, err := (Finder{}).virtio(s); err == nil && strings.Contains(s, "..") {
			t.Fatalf("disk address %q is accepted", s)
		}
	})
}
