// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package disk finds the guest's disks by the addresses that the host gives them, and waits for disks that are
// hot-plugged later. Package storage decides what a disk is used for.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Timeout bounds the wait for a disk to appear.
const Timeout = 10 * time.Second

// Disk is a disk as sysfs shows it.
type Disk struct {
	Path   string // /dev/…
	Number string // "major:minor"
	Size   uint64 // bytes
}

// Finder finds disks.
type Finder struct {
	Sys  string                                      // sysfs
	Load func(module string, params ...string) error // loads a kernel module of the guest image; nil: everything is there
}

// Address is a place at which there may be a disk.
type Address struct {
	// Dir is the directory in sysfs through which the guest lets go of a SCSI disk, with Forget; "" for others.
	Dir string

	find func() (string, error) // its name below /dev; os.ErrNotExist: there is none yet
	scan func() error           // makes the kernel look for it; nil: the kernel sees it by itself
}

// SCSI reads the address "TARGET:LUN".
func (f Finder) SCSI(source string) (Address, error) {
	target, lun, err := parseSCSI(source)
	if err != nil {
		return Address{}, err
	}
	dir := filepath.Join(f.Sys, "bus/scsi/devices", fmt.Sprintf("0:0:%d:%d", target, lun))
	scan := func() error {
		file := filepath.Join(f.Sys, "class/scsi_host/host0/scan")
		if err := os.WriteFile(file, fmt.Appendf(nil, "0 %d %d", target, lun), 0); err != nil {
			return err
		}
		// The scan is done; only the disk's name may come a little later.
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("there is nothing at this address: %w", errdefs.ErrNotFound)
		}
		return nil
	}
	find := func() (string, error) { return onlyEntry(filepath.Join(dir, "block")) }
	return Address{Dir: dir, find: find, scan: scan}, nil
}

// Virtio reads the PCI path of a virtio disk, or its name.
func (f Finder) Virtio(source string) (Address, error) {
	find, err := f.virtio(source)
	if err != nil {
		return Address{}, err
	}
	if f.Load != nil { // unlike SCSI's, its module is only loaded where it is needed
		if err := f.Load("virtio_blk"); err != nil && !errdefs.IsNotFound(err) {
			return Address{}, err
		}
	}
	return Address{find: find}, nil
}

// Named reads the name of a virtio disk, "/dev/vda".
func (f Finder) Named(source string) (Address, error) {
	if !isName(source) {
		return Address{}, invalid("%.80q is not a device name", source)
	}
	return f.Virtio(source)
}

// Wait returns the disk at an address, once there is one.
func (f Finder) Wait(ctx context.Context, a Address) (d Disk, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	_, err = waitFor(ctx, a.scan, func() (name string, err error) {
		if name, err = a.find(); err == nil {
			d, err = f.describe(name)
		}
		return name, err
	})
	return d, err
}

// describe reads what sysfs says about a disk. The kernel registers one step by step, and it can be seen before it can
// be used; until then the error is os.ErrNotExist.
func (f Finder) describe(name string) (Disk, error) {
	dir := filepath.Join(f.Sys, "class/block", name)
	number, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return Disk{}, err
	}
	size, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return Disk{}, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(size)), 10, 54)
	if err != nil {
		return Disk{}, fmt.Errorf("size of %s: %w", name, err)
	}
	path := "/dev/" + name
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		err = os.ErrNotExist
	}
	if err != nil {
		return Disk{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	unix.Close(fd)
	return Disk{Path: path, Number: strings.TrimSpace(string(number)), Size: sectors * 512}, nil
}

func invalid(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, errdefs.ErrInvalidArgument)...)
}

// parseSCSI reads "TARGET:LUN".
func parseSCSI(s string) (target, lun int, err error) {
	t, l, ok := strings.Cut(s, ":")
	target, terr := parseSmall(t, 255)
	lun, lerr := parseSmall(l, 16383)
	if !ok || terr != nil || lerr != nil {
		return 0, 0, invalid("%.40q is not a SCSI address TARGET:LUN", s)
	}
	return target, lun, nil
}

// parseSmall accepts a decimal number in its canonical form.
func parseSmall(s string, limit int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || strconv.Itoa(n) != s || n < 0 || n > limit {
		return 0, errors.New("not a number in range")
	}
	return n, nil
}

// isSlot tells whether s is a PCI slot, "1f", or slot and function, "1f.7".
func isSlot(s string) bool {
	slot, function, both := strings.Cut(s, ".")
	if both && (len(function) != 1 || !consistsOf(function, "01234567")) {
		return false
	}
	return len(slot) == 2 && consistsOf(slot, "0123456789abcdef")
}

// isName tells whether s is the path of a disk's node, as "/dev/vda".
func isName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	name, ok := strings.CutPrefix(s, "/dev/")
	return ok && len(name) >= 2 && len(name) <= 31 && consistsOf(name[:1], letters) &&
		consistsOf(name, letters+"0123456789")
}

func consistsOf(s, set string) bool { return strings.Trim(s, set) == "" }

// virtio understands a PCI path, the slots from the root bus down ("02" or "02/00"), and a device
// name.
func (f Finder) virtio(source string) (func() (string, error), error) {
	if isName(source) {
		name := strings.TrimPrefix(source, "/dev/")
		return func() (string, error) {
			_, err := os.Stat(filepath.Join(f.Sys, "class/block", name))
			return name, err
		}, nil
	}
	parts := strings.Split(source, "/")
	if len(parts) > 8 || slices.ContainsFunc(parts, func(p string) bool { return !isSlot(p) }) {
		return nil, invalid("%.80q is neither a PCI path nor a device name", source)
	}
	return func() (string, error) {
		dir := filepath.Join(f.Sys, "devices/pci0000:00")
		for _, p := range parts {
			if !strings.Contains(p, ".") {
				p += ".0"
			}
			next, err := filepath.Glob(filepath.Join(dir, "0000:[0-9a-f][0-9a-f]:"+p))
			if err != nil || len(next) != 1 {
				return "", os.ErrNotExist
			}
			dir = next[0]
		}
		disks, err := filepath.Glob(filepath.Join(dir, "virtio*", "block", "*"))
		if err != nil || len(disks) != 1 {
			return "", os.ErrNotExist
		}
		return filepath.Base(disks[0]), nil
	}, nil
}

// onlyEntry returns the single name in a directory.
func onlyEntry(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) != 1 {
		return "", os.ErrNotExist
	}
	return entries[0].Name(), nil
}

// waitFor starts listening for kernel events, then calls scan if there is one, and then find until it has found
// something: first at once, then after each event.
func waitFor(ctx context.Context, scan func() error, find func() (string, error)) (string, error) {
	if name, err := find(); err == nil {
		return name, nil
	}
	events, err := listenUevents()
	if err != nil {
		return "", err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, events.cancel)
	defer stop()
	if scan != nil {
		if err := scan(); err != nil {
			return "", fmt.Errorf("scan: %w", err)
		}
	}
	for {
		name, err := find()
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := events.wait(); err != nil {
			if ctx.Err() != nil {
				return "", fmt.Errorf("did not appear in the guest: %w", ctx.Err())
			}
			return "", err
		}
	}
}

// Forget removes a SCSI disk from the guest, so that its address can be used for another one.
func Forget(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "delete"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the host has unplugged it already
	}
	return err
}
