// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostvolume acts on the host for package plan/volume: it looks at mounts and root directories, reads the
// records of CSI drivers, opens sources and block devices, and reports changes.
package hostvolume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Look reads the host's mount table, if the plan of a specification depends on it.
func Look(s *specs.Spec) ([]*mountinfo.Info, error) {
	if !volume.NeedsMounts(s) {
		return nil, nil
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return mounts, nil
}

// Open opens a source, without reading from it: the descriptor is O_PATH.
func Open(o volume.Origin, source string) (*os.File, error) {
	var f *os.File
	var err error
	switch o {
	case volume.Named:
		f, err = hostfs.OpenSource(source, true)
	case volume.Resolved:
		f, err = hostfs.OpenSource(source, false)
	default:
		f, err = hostfs.OpenOwned(source)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the source %s does not exist: %w", source, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("the source %s: %w", source, err)
	}
	return f, nil
}

// ReadNamed reads the first bytes of a file that somebody has named.
func ReadNamed(source string, limit int64) ([]byte, error) {
	at, err := Open(volume.Named, source)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	f, err := hostfs.Reopen(at, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// Shape is what a volume's directory on the host tells about the one to be made in the guest.
type Shape struct {
	Mode  uint32 // permission and set-id bits
	Group uint32
	Bytes uint64 // size of its file system
	Tmpfs bool   // its file system is one
}

// ShapeOf reads the shape of a directory.
func ShapeOf(dir *os.File) (Shape, error) {
	var st unix.Stat_t
	var sfs unix.Statfs_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return Shape{}, fmt.Errorf("volume %s: %w", dir.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Shape{}, fmt.Errorf("volume %s: not a directory", dir.Name())
	}
	if err := unix.Fstatfs(int(dir.Fd()), &sfs); err != nil {
		return Shape{}, fmt.Errorf("volume %s: %w", dir.Name(), err)
	}
	return Shape{
		Mode: st.Mode & 0o7777, Group: st.Gid, Tmpfs: sfs.Type == unix.TMPFS_MAGIC,
		Bytes: sfs.Blocks * uint64(max(sfs.Bsize, 0)),
	}, nil
}
