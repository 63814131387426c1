// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/upperwire"
)

// tree sends the files below one directory.
type tree struct {
	out        *upperwire.Writer
	links      map[uint64]uint64 // by inode: the number of a file that has other names
	attributes []byte            // room for attributes
	running    bool              // files may change, appear and vanish while they are sent

	had, has memory // of the last stream and of this one; nil: everything is sent, or nothing is noted
	settled  int64  // what changed before this time, in nanoseconds, is noted
}

// place is where a directory is.
type place struct {
	depth  int
	opaque bool // it or one above it hides the directories of its name in the layers below
}

const (
	maxAttributes = 64 << 10 // the kernel's limit, of the list and of each value
	maxDepth      = 400      // directories, each of which is open here and on the host
	namesAtOnce   = 256
)

// dir sends a directory that is open, and closes it.
func (t *tree) dir(fd int, path, name string, st *unix.Stat_t, at place) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if at.depth > maxDepth {
		return fmt.Errorf("%.200q… lies more than %d directories deep", path, maxDepth)
	}
	e := entry(upperwire.Dir, name, st)
	if err := t.xattrs(&e, self(fd)); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if err := t.out.Write(e); err != nil {
		return err
	}
	at.opaque = at.opaque || e.Opaque
	for {
		names, err := f.Readdirnames(namesAtOnce)
		for _, n := range names {
			if err := t.child(fd, path, n, at); err != nil && !t.vanished(err) {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return t.out.Write(upperwire.Entry{Kind: upperwire.LeaveDir})
		}
		if err != nil {
			return err
		}
	}
}

// child sends an entry of a directory.
func (t *tree) child(dir int, path, name string, at place) error {
	path += "/" + name
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFDIR:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		at.depth++
		return t.dir(fd, path, name, &st, at)
	case kind == unix.S_IFCHR && st.Rdev == 0:
		return t.out.Write(upperwire.Entry{Kind: upperwire.Whiteout, Name: name})
	case kind == unix.S_IFSOCK:
		return t.out.Write(upperwire.Entry{Kind: upperwire.Skipped, Name: name, Text: "a socket"})
	case kind == unix.S_IFCHR || kind == unix.S_IFBLK:
		return t.out.Write(upperwire.Entry{Kind: upperwire.Skipped, Name: name, Text: "a device"})
	}
	id, known := t.links[st.Ino]
	if known {
		return t.out.Write(upperwire.Entry{Kind: upperwire.Link, Name: name, ID: id})
	}
	if t.unchanged(path, &st) && !at.opaque { // the host replaces an opaque directory
		return t.out.Write(upperwire.Entry{Kind: upperwire.Kept, Name: name})
	}
	if err := t.file(dir, name, &st); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

// file sends a regular file, a symbolic link or a fifo.
func (t *tree) file(dir int, name string, st *unix.Stat_t) error {
	e := entry(upperwire.File, name, st)
	if err := t.xattrs(&e, self(dir)+"/"+name); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		e.Kind = upperwire.Fifo
		return t.out.Write(e)
	case unix.S_IFLNK:
		e.Kind = upperwire.Symlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return err
		}
		e.Text = string(buf[:n])
		return t.out.Write(e)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var is unix.Stat_t
	if err := unix.Fstat(fd, &is); err != nil {
		return err
	}
	if is.Ino != st.Ino { // it was replaced meanwhile; the next stream has what is there now
		return errReplaced
	}
	if st.Nlink > 1 {
		e.ID = uint64(len(t.links)) + 1
		t.links[st.Ino] = e.ID
	}
	if err := t.out.Write(e); err != nil {
		return err
	}
	return t.data(f, st.Size)
}

// data sends a file's data without its holes.
func (t *tree) data(f *os.File, size int64) error {
	for end := int64(0); end < size; {
		from, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // the rest is a hole
			break
		}
		if err != nil {
			return err
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err == nil {
			to = min(to, size)
			_, err = f.Seek(from, io.SeekStart)
		}
		if err == nil && from < to {
			//nolint:gosec // from is not before end, nor to before from
			err = t.out.Extent(uint64(from-end), uint64(to-from), filled{f})
		}
		if err != nil {
			return err
		}
		end = max(to, from)
	}
	return t.out.EndOfFile()
}

func entry(kind upperwire.Kind, name string, st *unix.Stat_t) upperwire.Entry {
	return upperwire.Entry{
		Kind: kind, Name: name, Size: uint64(max(st.Size, 0)),
		Meta: upperwire.Meta{
			Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec,
			Nsec: uint32(st.Mtim.Nsec), //nolint:gosec // below a second
		},
	}
}

// xattrs adds the attributes of the file at path, which is followed unless it ends in a link of the container.
func (t *tree) xattrs(e *upperwire.Entry, path string) error {
	list, get := unix.Llistxattr, unix.Lgetxattr
	if e.Name == "" || e.Kind == upperwire.Dir { // a descriptor's name, which is a link
		list, get = unix.Listxattr, unix.Getxattr
	}
	n, err := list(path, t.attributes)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(t.attributes[:n]), "\x00"), "\x00") {
		mark, ofOverlay := strings.CutPrefix(name, "trusted.overlay.")
		switch {
		case ofOverlay && mark == "opaque":
			e.Opaque = true
			continue
		case ofOverlay && (mark == "redirect" || mark == "metacopy"):
			return fmt.Errorf("the overlay's mark %q stands for files of other layers, and cannot be sent", name)
		case !upperwire.Attribute(name):
			continue
		}
		n, err := get(path, name, t.attributes)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
		e.Xattrs = append(e.Xattrs, upperwire.Xattr{Name: name, Value: string(t.attributes[:n])})
	}
	return nil
}

func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
