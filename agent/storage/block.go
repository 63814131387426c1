// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/image/verity"
)

// The drivers of disks differ in how they find one.
func init() {
	for name, device := range map[string]func(disk.Finder, string) (disk.Address, error){
		contract.DriverBlk: disk.Finder.Virtio, contract.DriverMMIOBlk: disk.Finder.Named,
		contract.DriverSCSI: disk.Finder.SCSI,
	} {
		register(name, driver{options: isDiskOption, device: device, mount: (*Manager).mountDisk})
	}
}

func isDiskOption(o string) bool {
	return strings.HasPrefix(o, contract.VerityPrefix) || o == contract.OptionEphemeralKey || o == contract.OptionCreateFS
}

// blockDevice finds the disk of a storage, waiting for it if need be.
func (m *Manager) blockDevice(ctx context.Context, mt *mounted) (disk.Disk, error) {
	s := mt.storage
	dev, dir, err := m.findDisk(ctx, s.GetDriver(), s.GetSource())
	if dir != "" {
		mt.undo.Push("forget disk "+s.GetSource(), func(context.Context) error { return disk.Forget(dir) })
	}
	return dev, err
}

// findDisk returns the disk at an address of a driver that has disks, and the directory to forget it by.
func (m *Manager) findDisk(ctx context.Context, name, source string) (dev disk.Disk, dir string, err error) {
	f := disk.Finder{Sys: m.sys, Load: m.Load}
	a, err := drivers[name].device(f, source)
	if err != nil {
		return disk.Disk{}, "", err
	}
	if dev, err = f.Wait(ctx, a); err != nil {
		return disk.Disk{}, "", fmt.Errorf("disk %s %s: %w", name, source, err)
	}
	return dev, a.Dir, nil
}

// mountDisk mounts a disk: a layer, a volume, or an empty disk, which it encrypts and formats first.
func (m *Manager) mountDisk(ctx context.Context, point string, mt *mounted, opts options) error {
	s := mt.storage
	p, isLayer, err := verity.ParseOptions(s.GetDriverOptions())
	if err != nil {
		return invalid(err)
	}
	fresh, err := isFresh(s.GetDriverOptions())
	switch {
	case err != nil:
		return err
	case isLayer && s.GetFstype() != layerType:
		return invalid(errors.New(contract.VerityPrefix + "* options belong to an " + layerType + " file system"))
	case !isLayer && s.GetFstype() == layerType:
		return invalid(errors.New(layerType + " layer without " + contract.VerityRootHash))
	case fresh && isLayer:
		return invalid(errors.New("a layer is not an empty disk"))
	case fresh:
		return m.mountFresh(ctx, point, mt, opts)
	case isLayer:
		return m.mountLayer(ctx, point, mt, p, opts)
	}
	return m.mountBlock(ctx, point, mt, opts)
}

// checkImage refuses images that need more of the kernel's EROFS than plain ones do.
func checkImage(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = super.Check(f, size); err != nil {
		return invalid(err)
	}
	return nil
}

// mountLayer opens a layer's device with the root hash and mounts its EROFS image.
func (m *Manager) mountLayer(ctx context.Context, point string, mt *mounted, p verity.Params, opts options) error {
	if opts.flags&^(unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME) != 0 ||
		len(opts.data) > 0 {
		return invalid(fmt.Errorf("options %.200q do not fit a layer", mt.storage.GetOptions()))
	}
	dev, err := m.blockDevice(ctx, mt)
	if err != nil {
		return err
	}
	if dev.Size < p.Size() {
		return invalid(fmt.Errorf("layer %s: device has %d bytes, data and hash tree need %d", p.Hex(), dev.Size, p.Size()))
	}
	return m.openLayer(point, p.Hex(), dev.Number, mt, p, opts.flags)
}

// openLayer opens a layer on a block device ("major:minor") with its root hash, and mounts its EROFS image. name is
// that of the verity device.
func (m *Manager) openLayer(point, name, number string, mt *mounted, p verity.Params, flags uintptr) error {
	m.accelerateVerity()
	vd, path, err := m.openVerity(name, p, number)
	if err != nil {
		return fmt.Errorf("layer %s: %w", p.Hex(), err)
	}
	mt.undo.Push("close "+path, func(context.Context) error { return vd.Close() })
	layer := &verityLayer{p.Hex(), vd, mt.storage.GetDriver() == contract.DriverPull}
	if err = checkImage(path, int64(p.DataBlocks*verity.BlockSize)); err == nil { //nolint:gosec // of an open device
		err = m.mountAt(point, mt, beneath.FileSystem{Type: layerType, Source: path, Flags: flags | unix.MS_RDONLY})
	}
	// A mount that failed because of a bad block must say so, and one that worked in spite of one
	// (the kernel may read ahead) must not pass.
	if cerr := layer.check(point); cerr != nil {
		return errors.Join(cerr, err)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", p.Hex(), err)
	}
	mt.verity = append(mt.verity, layer)
	return nil
}

// elsewhere are options of ext4, xfs and btrfs by which the kernel opens something else by its name.
var elsewhere = []string{"journal_path", "journal_dev", "usrjquota", "grpjquota", "logdev", "rtdev", "device", "source"}

// mountBlock mounts a volume that is not a layer.
func (m *Manager) mountBlock(ctx context.Context, point string, mt *mounted, opts options) error {
	switch mt.storage.GetFstype() {
	case "ext4", "xfs", "btrfs":
	default:
		return invalid(fmt.Errorf("file system %.40q is not supported on block devices", mt.storage.GetFstype()))
	}
	for _, o := range opts.data {
		if name, _, _ := strings.Cut(o, "="); slices.Contains(elsewhere, name) {
			return invalid(fmt.Errorf("option %.100q names a device or file beside the volume's own", o))
		}
	}
	if m.Load != nil {
		if err := m.Load(mt.storage.GetFstype()); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	dev, err := m.blockDevice(ctx, mt)
	if err != nil {
		return err
	}
	return m.mountAt(point, mt, opts.fileSystem(mt.storage.GetFstype(), dev.Path))
}
