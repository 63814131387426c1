// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FromDir reads the tree of a snapshot directory: an overlay's upper or lower directory with its
// whiteouts (character devices 0:0) and opaque markers, or a plain directory. Sockets are skipped.
// Symbolic links are never followed, nor are other file systems that are mounted below.
// userxattr says that the overlay keeps its marks in user.overlay.*.
func FromDir(ctx context.Context, path string, userxattr bool) (*Tree, error) {
	return readTree(ctx, path, &walker{ctx: ctx, userxattr: userxattr})
}

// FromUpper reads the upper directory of a container. Nothing was unpacked there: each directory has the time that the
// container has given it.
func FromUpper(ctx context.Context, path string, userxattr bool) (*Tree, error) {
	return readTree(ctx, path, &walker{ctx: ctx, userxattr: userxattr, written: true})
}

func readTree(ctx context.Context, path string, w *walker) (*Tree, error) {
	root, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t, err := w.readDir(root)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("layer directory %s: %w", path, err)
	}
	return t, nil
}

func (w *walker) readDir(root *os.File) (*Tree, error) {
	w.links, w.xattrs = map[inode]*node{}, make([]byte, 1024)
	fd := int(root.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	w.dev = st.Dev
	n := w.fromStat(nil, "", &st)
	if err := w.readXattrs(n, "/proc/self/fd/"+strconv.Itoa(fd), unix.Getxattr, unix.Listxattr); err != nil {
		return nil, pathError("read attributes of", "", err)
	}
	if err := w.walk(n, fd, "."); err != nil {
		return nil, err
	}
	if !w.written {
		n = asDocker(n)
	}
	return newTree(n, dirContent{root})
}

type inode struct{ dev, ino uint64 }

// walker collects the nodes below a directory.
type walker struct {
	ctx    context.Context // of the one FromDir call that it lives in
	dev    uint64
	links  map[inode]*node // files with several names
	xattrs []byte
	// userxattr is FromDir's.
	userxattr bool
	// written says that a container has written the directory.
	written bool
	count   int
}

// walk reads the directory called name in the directory parent.
func (w *walker) walk(dir *node, parent int, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", dir.path(), err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return pathError("list", dir.path(), err)
	}
	dir.kids = make([]entry, 0, len(names))
	for _, child := range names {
		n, err := w.child(dir, fd, child)
		if err != nil {
			return pathError("read", strings.TrimPrefix(dir.path()+"/"+child, "/"), err)
		}
		if n != nil {
			dir.kids = append(dir.kids, entry{child, n})
		}
	}
	for _, e := range dir.kids {
		if !e.node.isDir() {
			continue
		}
		if err := w.walk(e.node, fd, e.name); err != nil {
			return err
		}
	}
	return nil
}

// child describes one name of a directory; nil when the layer leaves it out.
func (w *walker) child(dir *node, fd int, name string) (*node, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	kind := st.Mode & sIFMT
	if kind == sIFSOCK {
		return nil, nil
	}
	if st.Dev != w.dev && kind == sIFDIR {
		return nil, errors.New("another file system is mounted here")
	}
	key := inode{st.Dev, st.Ino}
	if st.Nlink > 1 && kind != sIFDIR {
		if n := w.links[key]; n != nil {
			return n, nil
		}
	}
	if w.count++; w.count > maxNodes {
		return nil, errTooManyFiles
	}
	n := w.fromStat(dir, name, &st)
	if kind == sIFCHR && st.Rdev == 0 {
		makeWhiteout(n)
		return n, nil
	}
	if err := w.readXattrs(n, "/proc/self/fd/"+strconv.Itoa(fd)+"/"+name, unix.Lgetxattr, unix.Llistxattr); err != nil {
		return nil, err
	}
	if kind == sIFLNK {
		if err := readTarget(n, fd); err != nil {
			return nil, err
		}
	}
	if st.Nlink > 1 && kind != sIFDIR {
		w.links[key] = n
	}
	return n, nil
}

func (w *walker) fromStat(parent *node, name string, st *unix.Stat_t) *node {
	n := &node{parent: parent, name: name, mode: st.Mode, uid: st.Uid, gid: st.Gid}
	mode := st.Mode
	if w.written {
		mode = sIFREG
	}
	n.mtime, n.nsec = kept(mode, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & sIFMT {
	case sIFREG:
		n.size = uint64(st.Size) //nolint:gosec // of a file
	case sIFCHR, sIFBLK:
		n.rdev = encodeDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return n
}

func readTarget(n *node, fd int) error {
	buf := make([]byte, maxSymlink+1)
	got, err := unix.Readlinkat(fd, n.name, buf)
	if err != nil {
		return err
	}
	if got > maxSymlink {
		return unix.ENAMETOOLONG
	}
	n.target, n.size = string(buf[:got]), uint64(got) //nolint:gosec // a length
	return nil
}

type (
	getXattr  func(path, attr string, dest []byte) (int, error)
	listXattr func(path string, dest []byte) (int, error)
)

func (w *walker) readXattrs(n *node, path string, get getXattr, list listXattr) error {
	size, err := w.grow(func(b []byte) (int, error) { return list(path, b) })
	if errors.Is(err, unix.ENOTSUP) || size == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(w.xattrs[:size]), "\x00"), "\x00") {
		if xattrFate(name, w.userxattr) == drop {
			continue
		}
		size, err := w.grow(func(b []byte) (int, error) { return get(path, name, b) })
		if err != nil {
			return fmt.Errorf("read extended attribute %s: %w", name, err)
		}
		if err := n.addXattr(name, string(w.xattrs[:size]), w.userxattr); err != nil {
			return err
		}
	}
	return nil
}

// grow calls read with a buffer that becomes large enough.
func (w *walker) grow(read func([]byte) (int, error)) (int, error) {
	size, err := read(w.xattrs)
	if errors.Is(err, unix.ERANGE) && len(w.xattrs) < 1<<16 {
		w.xattrs = make([]byte, 1<<16) // the kernel's limit
		return read(w.xattrs)
	}
	return size, err
}

// dirContent opens files beneath a directory.
type dirContent struct{ root *os.File }

func (d dirContent) open(n *node) (io.ReadCloser, error) {
	fd, err := unix.Openat2(int(d.root.Fd()), n.path(), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&sIFMT != sIFREG || uint64(st.Size) != n.size { //nolint:gosec // of a file
		unix.Close(fd)
		return nil, errors.New("file changed while the layer was being built")
	}
	return rawFile(fd), nil
}

func (d dirContent) Close() error { return d.root.Close() }

// rawFile reads a regular file without the cost of an os.File, which asks the poller first.
type rawFile int

func (f rawFile) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (f rawFile) Close() error { return unix.Close(int(f)) }
