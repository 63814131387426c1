// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/upperwire"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Bounds of the host's memory for a stream.
const (
	maxDepth = 500     // directories, each of which is open
	maxLinks = 1 << 16 // files with several names
	maxPaths = 8 << 20 // bytes of their paths
	maxAttrs = 4 << 20 // bytes of the attributes of the directories that are open; ext4 has 4 KiB of a directory
	maxNotes = 16      // names of omitted files, for the log
)

// receiver makes the files of a stream in a new directory.
type receiver struct {
	root   *os.File // the new directory
	opaque string   // the attribute that marks an opaque directory
	seed   maphash.Seed

	levels  []level           // the directories that are open
	attrs   int               // bytes that their attributes take
	links   map[uint64]string // paths of files with several names
	paths   int               // bytes of them
	names   map[uint64]bool   // every path, hashed
	before  map[uint64]bool   // those of the streams before
	stamps  map[uint64]uint64 // what they were made as, without directories
	skipped []string
	left    int // how many were left out and are not in skipped
}

// level is a directory whose entries are being received.
type level struct {
	dir  *os.File
	path string // below the root
	of   upperwire.Entry

	replaces bool // nothing of the directory that was there stays
}

// receive makes all files of a stream. On an error some of them are there.
func (r *receiver) receive(in *upperwire.Reader) (err error) {
	defer func() {
		for _, l := range r.levels {
			err = errors.Join(err, l.dir.Close())
		}
	}()
	for {
		e, err := in.Next()
		if err != nil {
			return err
		}
		if e.Kind == upperwire.End {
			return nil
		}
		if err := r.one(in, e); err != nil {
			return err
		}
	}
}

// one makes the file that a record describes.
func (r *receiver) one(in *upperwire.Reader, e upperwire.Entry) error {
	if e.Kind == upperwire.LeaveDir {
		return r.leave()
	}
	if len(r.levels) == 0 { // the upper directory itself
		dir, err := hostfs.Beneath(r.root, "", unix.O_RDONLY|unix.O_DIRECTORY, false)
		if err == nil {
			r.attrs = weight(e)
			r.levels = append(r.levels, level{dir: dir, of: e})
		}
		return err
	}
	at := r.levels[len(r.levels)-1]
	name := path.Join(at.path, e.Name)
	if e.Kind == upperwire.Skipped {
		r.skip(name, e.Text)
		return nil
	}
	hash := maphash.String(r.seed, name)
	if e.Kind == upperwire.Kept && (!r.before[hash] || r.names[hash] || at.replaces) {
		return fmt.Errorf("%q: it is said to be as it was, and no stream before had it: %w", name, errdefs.ErrInvalidArgument)
	}
	r.names[hash] = true
	if err := r.make(in, at.dir, name, e); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("it is there twice: %w", errdefs.ErrInvalidArgument)
		}
		return fmt.Errorf("%q: %w", name, err)
	}
	return r.stamp(at.dir, e, hash)
}

// stamp notes what was made.
func (r *receiver) stamp(dir *os.File, e upperwire.Entry, hash uint64) error {
	if e.Kind == upperwire.Kept || e.Kind == upperwire.Dir || e.Kind == upperwire.Whiteout {
		return nil
	}
	st, err := stat(dir, e.Name)
	if err == nil {
		r.stamps[hash] = stampOf(r.seed, st)
	}
	return err
}

// make makes an entry of a directory.
func (r *receiver) make(in *upperwire.Reader, dir *os.File, name string, e upperwire.Entry) error {
	fd := int(dir.Fd())
	switch e.Kind {
	case upperwire.Dir:
		return r.enter(dir, name, e)
	case upperwire.File:
		return r.file(in, dir, name, e)
	case upperwire.Link:
		return r.link(fd, e)
	case upperwire.Kept:
		return nil // there is nothing to merge, and a merge leaves what has its name
	case upperwire.Whiteout:
		return os.NewSyscallError("mknod", unix.Mknodat(fd, e.Name, unix.S_IFCHR, 0))
	case upperwire.Fifo:
		if err := unix.Mkfifoat(fd, e.Name, 0o600); err != nil {
			return os.NewSyscallError("mkfifo", err)
		}
		return nodeMeta(fd, e, true)
	case upperwire.Symlink:
		if err := unix.Symlinkat(e.Text, fd, e.Name); err != nil {
			return os.NewSyscallError("symlink", err)
		}
		return nodeMeta(fd, e, false)
	}
	return fmt.Errorf("a record of kind %q: %w", e.Kind, errdefs.ErrInvalidArgument)
}

// enter makes a directory. It gets its mode, owner and time when its entries are there.
func (r *receiver) enter(dir *os.File, name string, e upperwire.Entry) error {
	if len(r.levels) >= maxDepth {
		return fmt.Errorf("it lies more than %d directories deep: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	if r.attrs += weight(e); r.attrs > maxAttrs {
		return fmt.Errorf("the attributes of the directories on the way to it are more than %d bytes: %w", maxAttrs,
			errdefs.ErrInvalidArgument)
	}
	if err := unix.Mkdirat(int(dir.Fd()), e.Name, 0o700); err != nil {
		return os.NewSyscallError("mkdir", err)
	}
	sub, err := hostfs.Beneath(dir, e.Name, unix.O_RDONLY|unix.O_DIRECTORY, false)
	if err == nil {
		replaces := e.Opaque || r.levels[len(r.levels)-1].replaces
		r.levels = append(r.levels, level{dir: sub, path: name, of: e, replaces: replaces})
	}
	return err
}

// weight is the memory that a directory's attributes take while it is open.
func weight(e upperwire.Entry) (n int) {
	for _, x := range e.Xattrs {
		n += len(x.Name) + len(x.Value) + 64 // two strings, and what an allocation is rounded to
	}
	return n
}

// leave finishes a directory.
func (r *receiver) leave() error {
	l := r.levels[len(r.levels)-1]
	r.levels = r.levels[:len(r.levels)-1]
	r.attrs -= weight(l.of)
	err := fileMeta(l.dir, l.of)
	if err == nil && l.of.Opaque {
		err = unix.Fsetxattr(int(l.dir.Fd()), r.opaque, []byte("y"), 0)
	}
	if err = errors.Join(err, l.dir.Close()); err != nil {
		return fmt.Errorf("directory %q: %w", l.path, err)
	}
	return nil
}

// file makes a regular file. Its holes are holes again.
func (r *receiver) file(in *upperwire.Reader, dir *os.File, name string, e upperwire.Entry) (err error) {
	f, err := hostfs.Beneath(dir, e.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = in.Data(func(b []byte, at uint64) error {
		_, err := f.WriteAt(b, int64(at)) //nolint:gosec // below the limit of sizes
		return err
	})
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(e.Size)); err != nil { //nolint:gosec // likewise
		return err
	}
	if e.ID != 0 {
		if _, there := r.links[e.ID]; there || len(r.links) >= maxLinks || r.paths+len(name) > maxPaths {
			return fmt.Errorf("file %d with several names: it is there twice, or there are too many: %w", e.ID,
				errdefs.ErrInvalidArgument)
		}
		r.links[e.ID], r.paths = name, r.paths+len(name)
	}
	return fileMeta(f, e)
}

// link makes another name of a file that the stream had before.
func (r *receiver) link(dir int, e upperwire.Entry) error {
	first, ok := r.links[e.ID]
	if !ok {
		return fmt.Errorf("a link to file %d, which is not there: %w", e.ID, errdefs.ErrInvalidArgument)
	}
	f, err := hostfs.Beneath(r.root, first, unix.O_PATH, false)
	if err != nil {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, hostfs.Proc(f), dir, e.Name, unix.AT_SYMLINK_FOLLOW)
	return errors.Join(os.NewSyscallError("link", err), f.Close())
}

// skip notes a file that the guest does not send.
func (r *receiver) skip(name, what string) {
	if len(r.skipped) == maxNotes {
		r.left++
		return
	}
	r.skipped = append(r.skipped, fmt.Sprintf("%.200q (%.40q)", name, what))
}

// fileMeta gives a file or directory its owner, mode, attributes and time. The order matters: a change of the owner
// takes setuid and capabilities away, and every change but the last changes a time.
func fileMeta(f *os.File, e upperwire.Entry) error {
	fd := int(f.Fd())
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
		return os.NewSyscallError("chown", err)
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("extended attribute %q: %w", x.Name, err)
		}
	}
	at := when(e)
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, hostfs.Proc(f), at, 0))
}

// nodeMeta does the same to a symbolic link or a fifo, which is not opened. A link has no mode.
func nodeMeta(dir int, e upperwire.Entry, mode bool) error {
	if err := unix.Fchownat(dir, e.Name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("chown", err)
	}
	if mode {
		if err := unix.Fchmodat(dir, e.Name, e.Mode, 0); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, e.Name), x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("extended attribute %q: %w", x.Name, err)
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(dir, e.Name, when(e), unix.AT_SYMLINK_NOFOLLOW))
}

// when has the time of the last change for both times: the guest does not tell when a file was read last.
func when(e upperwire.Entry) []unix.Timespec {
	t := unix.Timespec{Sec: e.Sec, Nsec: int64(e.Nsec)}
	return []unix.Timespec{t, t}
}
