// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// blockDevice is a disk as sysfs shows it.
type blockDevice struct {
	path   string // /dev/…
	number string // "major:minor"
	size   uint64 // bytes
}

// blockDevice finds the disk of a storage, waiting for it if need be.
func (m *Manager) blockDevice(ctx context.Context, mt *mounted) (blockDevice, error) {
	s := mt.storage
	dev, sysdir, err := m.findDisk(ctx, s.GetDriver(), s.GetSource())
	if err != nil {
		return blockDevice{}, err
	}
	if sysdir != "" {
		mt.undo.Push("forget disk "+s.GetSource(), func(context.Context) error { return forgetSCSI(sysdir) })
	}
	return dev, nil
}

// findDisk returns the disk at an address of the given driver. For SCSI it also returns the device's
// sysfs directory, through which the guest lets go of it.
func (m *Manager) findDisk(ctx context.Context, driver, source string) (dev blockDevice, scsiDir string, err error) {
	ctx, cancel := context.WithTimeout(ctx, DeviceTimeout)
	defer cancel()
	var find func() (string, error)
	scan := func() error { return nil }
	switch driver {
	case contract.DriverSCSI:
		target, lun, err := parseSCSI(source)
		if err != nil {
			return blockDevice{}, "", invalid(err)
		}
		scsiDir = filepath.Join(m.sys, "bus/scsi/devices", fmt.Sprintf("0:0:%d:%d", target, lun))
		find = func() (string, error) { return onlyEntry(filepath.Join(scsiDir, "block")) }
		scan = func() error {
			file := filepath.Join(m.sys, "class/scsi_host/host0/scan")
			if err := os.WriteFile(file, fmt.Appendf(nil, "0 %d %d", target, lun), 0); err != nil {
				return err
			}
			// The scan is done; only the disk's name may come a little later.
			if _, err := os.Stat(scsiDir); err != nil {
				return fmt.Errorf("there is nothing at this address: %w", errdefs.ErrNotFound)
			}
			return nil
		}
	case contract.DriverBlk, contract.DriverMMIOBlk:
		if driver == contract.DriverMMIOBlk && !isDisk(source) {
			return blockDevice{}, "", invalid(fmt.Errorf("%.80q is not a device name", source))
		}
		if find, err = m.blkFinder(source); err != nil {
			return blockDevice{}, "", invalid(err)
		}
		if m.Load != nil { // unlike SCSI's, its module is only loaded where it is needed
			if err := m.Load("virtio_blk"); err != nil && !errdefs.IsNotFound(err) {
				return blockDevice{}, "", err
			}
		}
	default:
		return blockDevice{}, "", invalid(fmt.Errorf("%.40q is no kind of disk", driver))
	}
	_, err = waitFor(ctx, scan, func() (name string, err error) {
		if name, err = find(); err == nil {
			dev, err = m.describe(name)
		}
		return name, err
	})
	if err != nil {
		return blockDevice{}, "", fmt.Errorf("disk %s %s: %w", driver, source, err)
	}
	return dev, scsiDir, nil
}

// describe reads what sysfs says about a block device. The kernel registers a disk step by step, and
// it can be seen before it can be used; until then the error is os.ErrNotExist.
func (m *Manager) describe(name string) (blockDevice, error) {
	dir := filepath.Join(m.sys, "class/block", name)
	number, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return blockDevice{}, err
	}
	sectors, err := readInt(filepath.Join(dir, "size"))
	if err != nil {
		return blockDevice{}, err
	}
	path := "/dev/" + name
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		err = os.ErrNotExist
	}
	if err != nil {
		return blockDevice{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	unix.Close(fd)
	return blockDevice{path: path, number: strings.TrimSpace(string(number)), size: uint64(sectors) * 512}, nil
}

// parseSCSI reads "TARGET:LUN".
func parseSCSI(s string) (target, lun int, err error) {
	t, l, ok := strings.Cut(s, ":")
	target, terr := parseSmall(t, 255)
	lun, lerr := parseSmall(l, 16383)
	if !ok || terr != nil || lerr != nil {
		return 0, 0, fmt.Errorf("%.40q is not a SCSI address TARGET:LUN", s)
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

// isDisk tells whether s is the path of a disk's node, as "/dev/vda".
func isDisk(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	name, ok := strings.CutPrefix(s, "/dev/")
	return ok && len(name) >= 2 && len(name) <= 31 && consistsOf(name[:1], letters) && consistsOf(name, letters+"0123456789")
}

func consistsOf(s, set string) bool { return strings.Trim(s, set) == "" }

// blkFinder understands a PCI path, the slots from the root bus down ("02" or "02/00"), and a device
// name.
func (m *Manager) blkFinder(source string) (func() (string, error), error) {
	if isDisk(source) {
		name := strings.TrimPrefix(source, "/dev/")
		return func() (string, error) {
			_, err := os.Stat(filepath.Join(m.sys, "class/block", name))
			return name, err
		}, nil
	}
	parts := strings.Split(source, "/")
	if len(parts) > 8 || slices.ContainsFunc(parts, func(p string) bool { return !isSlot(p) }) {
		return nil, fmt.Errorf("%.80q is neither a PCI path nor a device name", source)
	}
	return func() (string, error) {
		dir := filepath.Join(m.sys, "devices/pci0000:00")
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

// waitFor starts listening for kernel events, then calls scan, and then find until it has found
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
	if err := scan(); err != nil {
		return "", fmt.Errorf("scan: %w", err)
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

// forgetSCSI removes a disk from the guest, so that its address can be used for another one.
func forgetSCSI(sysdir string) error {
	err := os.WriteFile(filepath.Join(sysdir, "delete"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the host has unplugged it already
	}
	return err
}
