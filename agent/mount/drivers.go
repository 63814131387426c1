// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/image/verity"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Drivers lists the storage drivers that Add knows, for GetGuestDetails.
func Drivers() []string {
	return []string{
		contract.DriverBlk, contract.DriverMMIOBlk, contract.DriverSCSI, contract.DriverEphemeral, contract.DriverLocal,
		contract.DriverOverlay, contract.DriverBind, contract.DriverWatchableBind, contract.DriverVirtioFS,
	}
}

// DeviceTypes lists the types of devices that Devices knows, likewise.
func DeviceTypes() []string {
	return []string{contract.DriverBlk, contract.DriverMMIOBlk, contract.DriverSCSI}
}

// absent are drivers of the protocol that this agent does not have, with the reason.
var absent = map[string]string{
	"image_guest_pull":  "the guest does not pull images: layers come as verity devices",
	"erofs.multi-layer": "layers are storages of their own, stacked by an overlayfs one",
	"nvdimm":            "the guest has no driver for persistent memory: use blk or scsi",
	"blk-ccw":           "the guest is no s390x",
}

func isBlock(driver string) bool {
	return driver == contract.DriverBlk || driver == contract.DriverMMIOBlk || driver == contract.DriverSCSI
}

// mount makes one mount and records how to undo it.
func (m *Manager) mount(ctx context.Context, point string, mt *mounted) error {
	s := mt.storage
	if why := absent[s.GetDriver()]; why != "" {
		return fmt.Errorf("storage driver %s: %s: %w", s.GetDriver(), why, errdefs.ErrNotImplemented)
	}
	p, hasVerity, err := verity.ParseOptions(s.GetDriverOptions())
	if err != nil {
		return invalid(err)
	}
	if hasVerity && (!isBlock(s.GetDriver()) || s.GetFstype() != "erofs") {
		return invalid(errors.New(contract.VerityPrefix + "* options belong to an erofs file system on a block device"))
	}
	if s.GetFstype() == "erofs" && !hasVerity {
		return invalid(errors.New("erofs layer without " + contract.VerityRootHash))
	}
	if err := checkDriverOptions(s); err != nil {
		return err
	}
	opts, err := parseOptions(s.GetOptions())
	if err != nil {
		return invalid(err)
	}
	switch s.GetDriver() {
	case contract.DriverBlk, contract.DriverMMIOBlk, contract.DriverSCSI:
		fresh, ferr := isFresh(s.GetDriverOptions())
		switch {
		case ferr != nil:
			err = ferr
		case fresh && hasVerity:
			err = invalid(errors.New("a layer is not an empty disk"))
		case fresh:
			err = m.mountFresh(ctx, point, mt, opts)
		case hasVerity:
			err = m.mountLayer(ctx, point, mt, p, opts)
		default:
			err = m.mountBlock(ctx, point, mt, opts)
		}
	case contract.DriverEphemeral:
		err = m.mountEphemeral(point, mt, opts)
	case contract.DriverLocal:
		err = m.makeLocal(point, opts)
	case contract.DriverOverlay:
		err = m.mountOverlay(point, mt, opts)
	case contract.DriverBind, contract.DriverWatchableBind: // for a directory that changes: a bind mount shows what is there
		err = m.mountBind(point, mt, opts)
	case contract.DriverVirtioFS:
		err = m.mountVirtioFS(point, mt, opts)
	default:
		return fmt.Errorf("unknown storage driver; known are %s: %w", strings.Join(Drivers(), ", "), errdefs.ErrNotImplemented)
	}
	if err != nil {
		return err
	}
	return m.applyFSGroup(point, s.GetFsGroup())
}

func invalid(err error) error { return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) }

// checkDriverOptions refuses what the driver would not understand: silence could mean that
// something the host relies on (encryption) did not happen.
func checkDriverOptions(s *agent.Storage) error {
	for _, o := range s.GetDriverOptions() {
		if strings.HasPrefix(o, contract.VerityPrefix) {
			continue
		}
		if s.GetDriver() == contract.DriverOverlay && strings.HasPrefix(o, contract.OptionCreateDirectory) {
			continue
		}
		if isBlock(s.GetDriver()) && (o == contract.OptionEphemeralKey || o == contract.OptionCreateFS) {
			continue
		}
		if s.GetDriver() == contract.DriverBind && strings.HasPrefix(o, contract.OptionSubPath) {
			continue
		}
		return fmt.Errorf("unknown driver option %.100q: %w", o, errdefs.ErrNotImplemented)
	}
	return nil
}

// checkImage refuses images that need more of the kernel's EROFS than plain ones do.
func checkImage(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	if _, err = super.Check(f, size); err != nil {
		return invalid(err)
	}
	return nil
}

// mountLayer opens a layer's device with the root hash and mounts its EROFS image.
func (m *Manager) mountLayer(ctx context.Context, point string, mt *mounted, p verity.Params, opts options) error {
	if opts.flags&^(unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME) != 0 || len(opts.data) > 0 {
		return invalid(fmt.Errorf("options %.200q do not fit a layer", mt.storage.GetOptions()))
	}
	dev, err := m.blockDevice(ctx, mt)
	if err != nil {
		return err
	}
	if dev.size < p.Size() {
		return invalid(fmt.Errorf("layer %s: device has %d bytes, data and hash tree need %d", p.Hex(), dev.size, p.Size()))
	}
	m.accelerateVerity()
	vd, path, err := m.openVerity(p.Hex(), p, dev.number)
	if err != nil {
		return fmt.Errorf("layer %s: %w", p.Hex(), err)
	}
	mt.undo.Push("close "+path, func(context.Context) error { return vd.Close() })
	layer := &verityLayer{rootHash: p.Hex(), device: vd}
	if err = checkImage(path, int64(p.DataBlocks*verity.BlockSize)); err == nil {
		err = m.mountAt(point, mt, beneath.FileSystem{Type: "erofs", Source: path, Flags: opts.flags | unix.MS_RDONLY})
	}
	// A mount that failed because of a bad block must say so, and one that worked in spite of one
	// (the kernel may read ahead) must not pass.
	if cerr := layer.check(point); cerr != nil {
		return errors.Join(cerr, err)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", p.Hex(), err)
	}
	mt.verity = layer
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
	return m.mountAt(point, mt, opts.fileSystem(mt.storage.GetFstype(), dev.path))
}

// mountAt makes the mount point and mounts there.
func (m *Manager) mountAt(point string, mt *mounted, fs beneath.FileSystem) error {
	mount, err := fs.New()
	if err != nil {
		return fmt.Errorf("mount %s from %s with options %q: %w", fs.Type, fs.Source, strings.Join(fs.Data, ","), err)
	}
	return m.at(point, mt, mount)
}

// at makes the mount point, puts a mount there, which it takes over, and records the undo.
func (m *Manager) at(point string, mt *mounted, mount *os.File) error {
	dir, made, err := m.dir.Make(point, 0o755)
	if err != nil {
		return errors.Join(err, mount.Close())
	}
	defer dir.Close()
	if made {
		mt.undo.Push("remove "+point, func(context.Context) error { return m.dir.RemoveDir(point) })
	}
	return attach(mt, mount, dir)
}

// attach puts a mount on a directory or file. What is unmounted later is this mount, whatever a container
// has done to the names that lead to it.
func attach(mt *mounted, mount, on *os.File) error {
	if err := beneath.Attach(mount, on); err != nil {
		return errors.Join(err, mount.Close())
	}
	mt.undo.Push("unmount "+on.Name(), func(context.Context) error { return beneath.Detach(mount) })
	return nil
}

// makeLocal makes a directory that lives as long as its users.
func (m *Manager) makeLocal(point string, opts options) error {
	mode, err := opts.takeMode(0o777)
	if err != nil {
		return invalid(err)
	}
	gid, hasGID, err := opts.takeID("fsgid")
	if err != nil {
		return invalid(err)
	}
	if len(opts.data) > 0 {
		return invalid(fmt.Errorf("unknown option %.100q", opts.joined()))
	}
	dir, _, err := m.dir.Make(point, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	return setModeAndGroup(dir, mode, gid, hasGID)
}

// setModeAndGroup applies mode and fsgid options to a directory opened with O_PATH.
func setModeAndGroup(dir *os.File, mode uint32, gid int, hasGID bool) error {
	path := beneath.Proc(dir)
	if hasGID {
		if err := unix.Chown(path, -1, gid); err != nil {
			return os.NewSyscallError("chown", err)
		}
		mode |= unix.S_ISGID | 0o070
	}
	return os.NewSyscallError("chmod", unix.Chmod(path, mode))
}

// mountBind shows another directory or file below the root at the mount point.
func (m *Manager) mountBind(point string, mt *mounted, opts options) error {
	if len(opts.data) > 0 {
		return invalid(fmt.Errorf("unknown option %.100q", opts.joined()))
	}
	src, err := m.dir.Open(mt.storage.GetSource())
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer src.Close()
	sub, err := takeSubPath(mt.storage.GetDriverOptions())
	if err != nil {
		return err
	}
	at := m.at
	if sub != "" {
		if src, err = openSubPath(src, sub); err != nil {
			return err
		}
		defer src.Close()
		if st, err := src.Stat(); err != nil {
			return err
		} else if !st.IsDir() {
			at = m.atFile
		}
	}
	mount, err := beneath.Clone(src, opts.flags)
	if err != nil {
		return err
	}
	return at(point, mt, mount)
}

// mountVirtioFS mounts a directory that the host shares.
func (m *Manager) mountVirtioFS(point string, mt *mounted, opts options) error {
	if m.HostFiles == nil || !m.HostFiles() {
		return fmt.Errorf("a guest in a TEE mounts nothing that the host shares: %w", errdefs.ErrPermissionDenied)
	}
	tag := mt.storage.GetSource()
	if tag == "" || len(tag) > 36 || strings.ContainsAny(tag, "/\x00") {
		return invalid(fmt.Errorf("virtio-fs tag %.80q", tag))
	}
	for _, o := range opts.data {
		if o != "dax" && o != "dax=always" && o != "dax=never" && o != "dax=inode" {
			return invalid(fmt.Errorf("unknown option %.100q", o))
		}
	}
	opts.flags |= unix.MS_NODEV
	return m.mountAt(point, mt, opts.fileSystem("virtiofs", tag))
}
