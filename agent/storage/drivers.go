// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/agent"
)

// driver makes storages of one kind available. All that is particular to it is in one file of this package, which
// registers it; docs/extending.md has the steps to add one.
type driver struct {
	// options reports whether the driver knows a driver option; nil: it has none. An unknown one is refused: if it were
	// ignored, a feature that the host relies on (encryption) could silently be missing.
	options func(option string) bool
	// sources lists the guest's paths that a storage is made of; nil: there are none. Whether the request may name them is
	// checked before (package guard). It is pure.
	sources func(*agent.Storage) []string
	// shares says that the file system may be mounted where the host's files for all containers are.
	shares bool
	// device reads the address of a disk; nil: storages of the driver are no disks. A driver that has it is a type of
	// devices as well.
	device func(f disk.Finder, address string) (disk.Address, error)
	// mount makes a storage available at point and pushes the undo of each step to mt.undo.
	mount func(m *Manager, ctx context.Context, point string, mt *mounted, opts options) error
}

// drivers has this agent's drivers by the name in a storage. Each driver's file registers its own.
var drivers = map[string]driver{}

func register(name string, d driver) {
	if _, twice := drivers[name]; twice {
		panic("storage driver " + name + " is registered twice")
	}
	drivers[name] = d
}

// Drivers lists the storage drivers of this agent.
func Drivers() []string { return slices.Sorted(maps.Keys(drivers)) }

// DeviceTypes lists the types of devices of this agent.
func DeviceTypes() []string {
	return slices.DeleteFunc(Drivers(), func(name string) bool { return drivers[name].device == nil })
}

// Sources lists the guest's paths that a storage is made of.
func Sources(s *agent.Storage) []string {
	if list := drivers[s.GetDriver()].sources; list != nil {
		return list(s)
	}
	return nil
}

// Shares reports whether a storage may be mounted in the directory of the host's files for all containers.
func Shares(s *agent.Storage) bool { return drivers[s.GetDriver()].shares }

// absent are drivers of the protocol that this agent does not have, with the reason.
var absent = map[string]string{
	"erofs.multi-layer": "layers are storages of their own, stacked by an overlayfs one",
	"nvdimm":            "the guest has no driver for persistent memory: use blk or scsi",
	"blk-ccw":           "the guest is no s390x",
}

// layerType is the file system of image layers. It is mounted from disks that dm-verity checks, and from nothing else.
const layerType = "erofs"

// mount makes one mount and records how to undo it.
func (m *Manager) mount(ctx context.Context, point string, mt *mounted) error {
	s := mt.storage
	name := s.GetDriver()
	d, ok := drivers[name]
	if !ok {
		why := absent[name]
		if why == "" {
			why = "unknown storage driver; known are " + strings.Join(Drivers(), ", ")
		}
		return fmt.Errorf("storage driver %.40q: %s: %w", name, why, errdefs.ErrNotImplemented)
	}
	if s.GetFstype() == layerType && d.device == nil {
		return invalid(errors.New("an " + layerType + " file system is mounted from a disk only"))
	}
	for _, o := range s.GetDriverOptions() {
		if d.options == nil || !d.options(o) {
			return fmt.Errorf("unknown driver option %.100q: %w", o, errdefs.ErrNotImplemented)
		}
	}
	opts, err := parseOptions(s.GetOptions())
	if err != nil {
		return invalid(err)
	}
	if err := d.mount(m, ctx, point, mt, opts); err != nil {
		return err
	}
	return m.applyFSGroup(point, s.GetFsGroup())
}

func invalid(err error) error { return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) }

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

// attach puts a mount on a directory or file. Later exactly this mount is unmounted, even if a container has
// changed the names that lead to it.
func attach(mt *mounted, mount, on *os.File) error {
	if err := beneath.Attach(mount, on); err != nil {
		return errors.Join(err, mount.Close())
	}
	mt.undo.Push("unmount "+on.Name(), func(context.Context) error { return beneath.Detach(mount) })
	return nil
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
