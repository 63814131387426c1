// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Look reads the host's mount table, if a mount of the specification needs it.
func Look(s *specs.Spec) ([]*mountinfo.Info, error) {
	for _, m := range s.Mounts {
		if _, rest := kubelets(m.Source); !isBind(m) || len(rest) < 2 || rest[0] == containersDir {
			continue
		}
		mounts, err := mountinfo.GetMounts(nil)
		if err != nil {
			return nil, fmt.Errorf("read the mount table: %w", err)
		}
		return mounts, nil
	}
	return nil, nil
}

// Shape is what a volume's directory on the host tells about the one to be made in the guest.
type Shape struct {
	Mode  uint32 // permission and set-id bits
	Group uint32
	Bytes uint64 // size of its file system
}

// ShapeOf reads the shape of a directory.
func ShapeOf(dir string) (Shape, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Stat(dir, &st); err != nil {
		return Shape{}, fmt.Errorf("volume %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Shape{}, fmt.Errorf("volume %s: not a directory", dir)
	}
	if err := unix.Statfs(dir, &fs); err != nil {
		return Shape{}, fmt.Errorf("volume %s: %w", dir, err)
	}
	return Shape{Mode: st.Mode & 0o7777, Group: st.Gid, Bytes: fs.Blocks * uint64(max(fs.Bsize, 0))}, nil //nolint:gosec // not negative
}

// IsMemory says whether a directory is on a tmpfs.
func IsMemory(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}
