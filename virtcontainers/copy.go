// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/spec"
)

const (
	copyChunk = 1 << 20 // bytes per CopyFile request, as other hosts of this protocol send
	entryCost = 4 << 10 // what an entry of a directory counts at least: each is a request
	dirMode   = 0o755   // parents that the guest has to make
)

// pseudoFS are file systems whose files are views of the host's kernel: a copy would be a lie.
var pseudoFS = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts", unix.DEBUGFS_MAGIC: "debugfs",
	unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
}

// fileSink takes files for the guest.
type fileSink interface {
	CopyFile(ctx context.Context, req *agent.CopyFileRequest) error
}

// entry is one file, directory or symbolic link to be copied.
type entry struct {
	path   string // on the host
	guest  string
	stat   unix.Stat_t
	target string // of a link
}

// copyIn copies a bind mount's source to the guest: regular files, directories and symbolic links,
// with modes and owners. What is not one of these, and what is larger than limitMiB, is refused
// before anything is sent.
func copyIn(ctx context.Context, sink fileSink, c spec.Copy, limitMiB uint64) error {
	entries, err := survey(c, limitMiB, nil)
	if err != nil {
		return fmt.Errorf("mount %s: %w", c.Destination, err)
	}
	for _, e := range entries {
		if err := send(ctx, sink, e); err != nil {
			return fmt.Errorf("mount %s: copy %s into the guest: %w", c.Destination, e.path, err)
		}
	}
	return nil
}

// survey lists what has to be copied. skip, which may be nil, says what has not, by its path below
// the source.
func survey(c spec.Copy, limitMiB uint64, skip func(rel string) bool) ([]entry, error) {
	// The kernel follows a link that is the source of a bind mount.
	source, err := filepath.EvalSymlinks(c.Source)
	if err != nil {
		return nil, sourceError(c.Source, err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(source, &sfs); err != nil {
		return nil, sourceError(source, err)
	}
	if name := pseudoFS[int64(sfs.Type)]; name != "" { //nolint:unconvert // differs by architecture
		return nil, fmt.Errorf("the source %s is on %s, a view of the host's kernel that a VM cannot share: %w", source, name, errdefs.ErrInvalidArgument)
	}
	var entries []entry
	var total uint64
	err = filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return sourceError(p, err)
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		if skip != nil && p != source && skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		e := entry{path: p, guest: path.Join(c.Guest, rel)}
		if err := unix.Lstat(p, &e.stat); err != nil {
			return sourceError(p, err)
		}
		if kind := uncopyable(e.stat.Mode); kind != "" {
			return fmt.Errorf("%s is a %s of the host, which cannot be copied into a VM: %w", p, kind, errdefs.ErrInvalidArgument)
		}
		if e.stat.Mode&unix.S_IFMT == unix.S_IFLNK {
			if e.target, err = os.Readlink(p); err != nil {
				return sourceError(p, err)
			}
		}
		cost := uint64(entryCost)
		if e.stat.Mode&unix.S_IFMT == unix.S_IFREG {
			cost = max(cost, uint64(e.stat.Size)) //nolint:gosec // a size
		}
		if total += cost; total > limitMiB*mib && (p != source || cost > entryCost) {
			return fmt.Errorf("the source %s is larger than can be copied into the VM: %s of %d entries so far, the limit is %d MiB (runtime.max_copy_mib): %w",
				source, size(total), len(entries)+1, limitMiB, errdefs.ErrInvalidArgument)
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func sourceError(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the source %s does not exist: %w", p, errdefs.ErrNotFound)
	}
	return fmt.Errorf("the source %s: %w", p, err)
}

func size(n uint64) string {
	if n < mib {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func uncopyable(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return ""
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFCHR:
		return "character device"
	default:
		return "file of an unknown kind"
	}
}

func send(ctx context.Context, sink fileSink, e entry) error {
	req := func() *agent.CopyFileRequest {
		return &agent.CopyFileRequest{
			Path: e.guest, FileMode: e.stat.Mode, DirMode: dirMode,
			Uid: int32(e.stat.Uid), Gid: int32(e.stat.Gid), //nolint:gosec // as the protocol has it
		}
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return sink.CopyFile(ctx, req())
	case unix.S_IFLNK:
		r := req()
		r.Data, r.FileSize = []byte(e.target), int64(len(e.target))
		r.Inner = true // a source is never a link itself: they are resolved
		return sink.CopyFile(ctx, r)
	default:
		return sendFile(ctx, sink, e, req)
	}
}

func sendFile(ctx context.Context, sink fileSink, e entry, req func() *agent.CopyFileRequest) error {
	f, err := os.OpenFile(e.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	buf := make([]byte, min(e.stat.Size, copyChunk))
	for offset := int64(0); ; {
		chunk := buf[:min(e.stat.Size-offset, copyChunk)]
		if _, err := io.ReadFull(f, chunk); err != nil {
			return fmt.Errorf("the file became shorter while it was read: %w", err)
		}
		r := req()
		r.FileSize, r.Offset, r.Data = e.stat.Size, offset, chunk
		if err := sink.CopyFile(ctx, r); err != nil {
			return err
		}
		if offset += int64(len(chunk)); offset >= e.stat.Size {
			return nil
		}
	}
}
