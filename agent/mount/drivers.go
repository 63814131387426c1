// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/image/verity"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Drivers lists the storage drivers that Add knows, for GetGuestDetails.
func Drivers() []string {
	return []string{"blk", "scsi", "ephemeral", "local", "overlayfs", "bind", "virtio-fs"}
}

// mount makes one mount and records how to undo it.
func (m *Manager) mount(ctx context.Context, point string, mt *mounted) error {
	s := mt.storage
	p, hasVerity, err := verity.ParseOptions(s.GetDriverOptions())
	if err != nil {
		return invalid(err)
	}
	block := s.GetDriver() == "blk" || s.GetDriver() == "scsi"
	if hasVerity && (!block || s.GetFstype() != "erofs") {
		return invalid(errors.New("coco.verity options belong to an erofs file system on a block device"))
	}
	if s.GetFstype() == "erofs" && !hasVerity {
		return invalid(errors.New("erofs layer without coco.verity.root_hash"))
	}
	if err := checkDriverOptions(s); err != nil {
		return err
	}
	opts, err := parseOptions(s.GetOptions())
	if err != nil {
		return invalid(err)
	}
	switch s.GetDriver() {
	case "blk", "scsi":
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
	case "ephemeral":
		err = m.mountEphemeral(point, mt, opts)
	case "local":
		err = m.makeLocal(point, opts)
	case "overlayfs":
		err = m.mountOverlay(point, mt, opts)
	case "bind":
		err = m.mountBind(point, mt, opts)
	case "virtio-fs":
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

// createDirectory is the overlay driver's option to make a directory first.
const createDirectory = "io.katacontainers.volume.overlayfs.create_directory="

// checkDriverOptions refuses what the driver would not understand: silence could mean that
// something the host relies on (encryption) did not happen.
func checkDriverOptions(s *agent.Storage) error {
	for _, o := range s.GetDriverOptions() {
		if strings.HasPrefix(o, verity.OptionPrefix) {
			continue
		}
		if s.GetDriver() == "overlayfs" && strings.HasPrefix(o, createDirectory) {
			continue
		}
		if (s.GetDriver() == "blk" || s.GetDriver() == "scsi") && (o == ephemeralKey || o == createFS) {
			continue
		}
		if s.GetDriver() == "bind" && strings.HasPrefix(o, subPathOption) {
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
		err = m.mountAt(point, mt, path, "erofs", opts.flags|unix.MS_RDONLY, "")
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

// mountBlock mounts a volume that is not a layer.
func (m *Manager) mountBlock(ctx context.Context, point string, mt *mounted, opts options) error {
	switch mt.storage.GetFstype() {
	case "ext4", "xfs", "btrfs":
	default:
		return invalid(fmt.Errorf("file system %.40q is not supported on block devices", mt.storage.GetFstype()))
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
	return m.mountAt(point, mt, dev.path, mt.storage.GetFstype(), opts.flags, opts.joined())
}

// mountAt makes the mount point and mounts there.
func (m *Manager) mountAt(point string, mt *mounted, source, fstype string, flags uintptr, data string) error {
	return m.at(point, mt, func(target string) error {
		if err := unix.Mount(source, target, fstype, flags, data); err != nil {
			return fmt.Errorf("mount %s from %s with options %q: %w", fstype, source, data, err)
		}
		return nil
	})
}

// at makes the mount point, calls mount with a path to it that cannot be redirected, and records
// the undo.
func (m *Manager) at(point string, mt *mounted, mount func(target string) error) error {
	dir, made, err := m.makeDir(point, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	if made {
		mt.undo.Push("remove "+point, func(context.Context) error { return m.removeDir(point) })
	}
	if err := mount(procPath(dir)); err != nil {
		return err
	}
	mt.undo.Push("unmount "+point, func(context.Context) error { return unmount(point) })
	return nil
}

// unmount takes a mount away; one that is still in use vanishes when it no longer is.
func unmount(point string) error {
	err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not a mount any more
	}
	return os.NewSyscallError("umount", err)
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
	dir, _, err := m.makeDir(point, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	return setModeAndGroup(dir, mode, gid, hasGID)
}

// setModeAndGroup applies mode and fsgid options to a directory opened with O_PATH.
func setModeAndGroup(dir *os.File, mode uint32, gid int, hasGID bool) error {
	path := procPath(dir)
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
	source, err := m.clean(mt.storage.GetSource())
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if len(opts.data) > 0 {
		return invalid(fmt.Errorf("unknown option %.100q", opts.joined()))
	}
	src, err := m.open(source)
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
	return at(point, mt, func(target string) error {
		if err := unix.Mount(procPath(src), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", source, err)
		}
		flags := opts.flags &^ (unix.MS_BIND | unix.MS_REC)
		if flags == 0 {
			return nil
		}
		// target still leads to the directory below the new mount.
		if err := unix.Mount("", point, "", flags|unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
			return errors.Join(fmt.Errorf("set options of bind %s: %w", source, err), unmount(point))
		}
		return nil
	})
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
	return m.mountAt(point, mt, tag, "virtiofs", opts.flags|unix.MS_NODEV, opts.joined())
}
