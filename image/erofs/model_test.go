// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

// item is one entry of a layer, in a form that can be unpacked to a directory and packed into a tar.
type item struct {
	path         string
	kind         byte // tar type flag; 'w' whiteout, 'o' opaque marker
	mode         int64
	uid, gid     int
	mtime        int64
	data         []byte
	target       string
	major, minor int64
	xattrs       map[string]string
}

// needRoot skips tests that make device nodes or mounts.
func needRoot(t testing.TB) {
	t.Helper()
	testvm.Need(t, testvm.Root) // makes device nodes, owners and trusted extended attributes
}

// unpack does with items what containerd's overlayfs snapshotter does.
func unpack(root string, items []item) error {
	for _, it := range items {
		if err := unpackOne(filepath.Join(root, it.path), root, it); err != nil {
			return fmt.Errorf("%s: %w", it.path, err)
		}
	}
	for _, it := range slices.Backward(items) { // directory times, after their content is there
		if it.kind != 'w' && it.kind != 'o' && it.kind != tar.TypeLink {
			ts := []unix.Timespec{{Sec: it.mtime, Nsec: 123456789}, {Sec: it.mtime, Nsec: 987654321}}
			if it.kind == tar.TypeDir {
				ts[1].Nsec = 0
			}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, it.path), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
	}
	return nil
}

func unpackOne(p, root string, it item) error {
	var err error
	switch it.kind {
	case 'w':
		return unix.Mknod(p, unix.S_IFCHR, 0)
	case 'o':
		return unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
	case tar.TypeLink:
		return os.Link(filepath.Join(root, it.target), p)
	case tar.TypeDir:
		err = os.Mkdir(p, 0o700)
	case tar.TypeReg:
		err = os.WriteFile(p, it.data, 0o600)
	case tar.TypeSymlink:
		err = os.Symlink(it.target, p)
	case tar.TypeFifo:
		err = unix.Mknod(p, unix.S_IFIFO, 0)
	case tar.TypeChar:
		err = unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(uint32(it.major), uint32(it.minor))))
	case tar.TypeBlock:
		err = unix.Mknod(p, unix.S_IFBLK, int(unix.Mkdev(uint32(it.major), uint32(it.minor))))
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(p, it.uid, it.gid); err != nil {
		return err
	}
	for k, v := range it.xattrs {
		if err := unix.Lsetxattr(p, k, []byte(v), 0); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	if it.kind != tar.TypeSymlink {
		return unix.Chmod(p, uint32(it.mode))
	}
	return nil
}

// pack writes items as a registry has them.
func pack(t testing.TB, items []item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, it := range items {
		h := &tar.Header{
			Name: it.path, Typeflag: it.kind, Mode: it.mode, Uid: it.uid, Gid: it.gid, Linkname: it.target,
			Devmajor: it.major, Devminor: it.minor, Size: int64(len(it.data)),
			ModTime: time.Unix(it.mtime, 987654321), Format: tar.FormatPAX,
		}
		if it.kind == tar.TypeDir {
			h.ModTime = time.Unix(it.mtime, 0)
		}
		switch it.kind {
		case 'w':
			h.Typeflag, h.Name = tar.TypeReg, filepath.Join(filepath.Dir(it.path), ".wh."+filepath.Base(it.path))
		case 'o':
			h.Typeflag, h.Name = tar.TypeReg, it.path+"/.wh..wh..opq"
		case tar.TypeDir:
			h.Name += "/"
		}
		for k, v := range it.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[paxXattr+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("pack %s: %v", it.path, err)
		}
		if _, err := w.Write(it.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// image writes a tree to memory.
func image(t testing.TB, tree *Tree) []byte {
	t.Helper()
	defer tree.Close()
	var buf bytes.Buffer
	if err := tree.Write(context.Background(), &buf); err != nil {
		t.Fatalf("write image: %v", err)
	}
	if int64(buf.Len()) != tree.Size() {
		t.Fatalf("image has %d bytes, Size() said %d", buf.Len(), tree.Size())
	}
	return buf.Bytes()
}

func fromTar(t testing.TB, b []byte) []byte {
	t.Helper()
	tree, err := FromTar(t.Context(), bytes.NewReader(b), nil)
	if err != nil {
		t.Fatalf("FromTar: %v", err)
	}
	return image(t, tree)
}

// fromTarStream reads the tar as a stream, through a spool.
func fromTarStream(t testing.TB, b []byte) []byte {
	t.Helper()
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	tree, err := FromTar(t.Context(), struct{ *bytes.Buffer }{bytes.NewBuffer(b)}, spool)
	if err != nil {
		t.Fatalf("FromTar (stream): %v", err)
	}
	return image(t, tree)
}

func fromDir(t testing.TB, dir string) []byte {
	t.Helper()
	tree, err := FromDir(t.Context(), dir, false)
	if err != nil {
		t.Fatalf("FromDir: %v", err)
	}
	return image(t, tree)
}

// describeTree lists everything that an image must preserve, one line per name.
func describeTree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil
		}
		mtime := st.Mtim
		if rel == "" {
			mtime = unix.Timespec{}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			out = append(out, rel+" whiteout")
			return nil
		}
		line := fmt.Sprintf("%s %o %d:%d t=%d.%09d dev=%d", rel, st.Mode, st.Uid, st.Gid, mtime.Sec, mtime.Nsec, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", len(b), crc(b))
		case unix.S_IFLNK:
			l, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + l
		case unix.S_IFDIR:
			line += fmt.Sprintf(" nlink=%d", st.Nlink)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := inodes[st.Ino]; ok {
				line += " same as " + first
			} else {
				inodes[st.Ino] = rel
			}
		}
		out = append(out, line+xattrsOf(t, p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func crc(b []byte) uint32 {
	var h uint32
	for _, c := range b {
		h = h*16777619 ^ uint32(c)
	}
	return h
}

func xattrsOf(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	var xs []string
	for name := range strings.SplitSeq(string(buf[:max(n, 0)]), "\x00") {
		if name == "" || xattrFate(name, false) == drop {
			continue
		}
		v := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		xs = append(xs, fmt.Sprintf(" %s=%x", name, v[:n]))
	}
	slices.Sort(xs)
	return strings.Join(xs, "")
}
