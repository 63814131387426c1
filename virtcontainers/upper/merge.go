// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/upperwire"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// merger moves the entries of a received directory into the upper one. Both are upper directories of an overlay: the
// received one lies above the other one, in which the files of the container's earlier runs are. Every step leaves the
// upper directory with either the old entry, the new one, or none, and can be repeated.
type merger struct {
	dirs   Dirs
	aside  *aside
	seed   maphash.Seed
	before map[uint64]bool // paths that were brought back before; nil: none
	now    map[uint64]bool // paths that are brought back now

	trash int // entries in it
}

// merge moves everything, and removes what is replaced.
func (m *merger) merge() error {
	from, err := m.aside.open(readyName)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openDir(m.dirs.Upper)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := m.dir(from, to, ""); err != nil {
		return fmt.Errorf("merge the container's files into %s: %w", m.dirs.Upper, err)
	}
	return nil
}

// dir moves the entries of a directory into another one, which gets its mode, owner, attributes and time.
func (m *merger) dir(from, to *os.File, rel string) error {
	of, err := metaOf(from) // before its time changes
	if err != nil {
		return err
	}
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.entry(from, to, rel, name); err != nil {
			return fmt.Errorf("%q: %w", path.Join(rel, name), err)
		}
	}
	if m.before != nil {
		if err := m.prune(to, rel); err != nil {
			return err
		}
	}
	return takeMeta(to, of)
}

// entry moves one entry.
func (m *merger) entry(from, to *os.File, rel, name string) error {
	a, err := stat(from, name)
	if err != nil {
		return err
	}
	b, err := stat(to, name)
	if errors.Is(err, unix.ENOENT) {
		if whiteout(a) && !m.below(path.Join(rel, name)) { // an earlier stream has removed it
			return nil
		}
		return rename(from, name, to, name)
	}
	if err != nil {
		return err
	}
	isDir, wasDir := a.Mode&unix.S_IFMT == unix.S_IFDIR, b.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case whiteout(a):
		if err := m.discard(to, name); err != nil || !m.below(path.Join(rel, name)) {
			return err
		}
	case isDir:
		done, err := m.directory(from, to, rel, name, wasDir)
		if done || err != nil {
			return err
		}
	case wasDir:
		if err := m.discard(to, name); err != nil {
			return err
		}
	}
	return rename(from, name, to, name)
}

// directory merges a directory with another one, or makes room for it.
func (m *merger) directory(from, to *os.File, rel, name string, wasDir bool) (done bool, err error) {
	f, err := hostfs.Beneath(from, name, unix.O_RDONLY|unix.O_DIRECTORY, false)
	if err != nil {
		return false, err
	}
	defer f.Close()
	mark := opaqueMark(m.dirs)
	_, err = unix.Fgetxattr(int(f.Fd()), mark, nil)
	opaque := err == nil
	if !opaque && wasDir {
		t, err := hostfs.Beneath(to, name, unix.O_RDONLY|unix.O_DIRECTORY, false)
		if err != nil {
			return false, err
		}
		defer t.Close()
		return true, m.dir(f, t, path.Join(rel, name))
	}
	if !opaque { // the replaced file hid the directories of that name in the layers below
		if err := unix.Fsetxattr(int(f.Fd()), mark, []byte("y"), 0); err != nil {
			return false, os.NewSyscallError("setxattr", err)
		}
	}
	return false, m.discard(to, name)
}

// prune removes the entries of a directory that were brought back before and are not there any more: the container has
// made and removed them since its start.
func (m *merger) prune(to *os.File, rel string) error {
	d, err := hostfs.Beneath(to, "", unix.O_RDONLY|unix.O_DIRECTORY, false)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if h := maphash.String(m.seed, path.Join(rel, name)); m.before[h] && !m.now[h] {
			if err := m.discard(to, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// discard moves an entry away, to be removed.
func (m *merger) discard(dir *os.File, name string) error {
	for {
		m.trash++
		err := unix.Renameat2(int(dir.Fd()), name, int(m.aside.dir.Fd()), trashName+"/"+strconv.Itoa(m.trash),
			unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) { // of a merge that was interrupted
			return os.NewSyscallError("rename", err)
		}
	}
}

// below reports whether the layers below have an entry at a path: only then a whiteout of it has an effect.
func (m *merger) below(rel string) bool {
	for _, lower := range m.dirs.Lower {
		there, hides := inLayer(lower, rel)
		if there || hides {
			return there
		}
	}
	return false
}

// inLayer looks for a path in one layer. A whiteout hides those of the layers below. In doubt a path counts as there:
// a whiteout too many changes nothing that a container sees.
func inLayer(layer, rel string) (there, hides bool) {
	d, err := openDir(layer)
	if err != nil {
		return true, false
	}
	defer d.Close()
	f, err := hostfs.Beneath(d, rel, unix.O_PATH|unix.O_NOFOLLOW, false)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, false
	}
	if err != nil {
		return true, false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return true, false
	}
	return !whiteout(&st), whiteout(&st)
}

func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func stat(dir *os.File, name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return &st, err
}

func rename(from *os.File, name string, to *os.File, as string) error {
	return os.NewSyscallError("rename", unix.Renameat(int(from.Fd()), name, int(to.Fd()), as))
}

// metaOf reads the owner, mode, attributes and time of a directory.
func metaOf(dir *os.File) (e upperwire.Entry, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return e, os.NewSyscallError("fstat", err)
	}
	e.Meta = upperwire.Meta{
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec,
		Nsec: uint32(st.Mtim.Nsec), //nolint:gosec // below a second
	}
	e.Xattrs, err = attributes(dir)
	return e, err
}

// takeMeta gives a directory those of another one. The overlay's marks stay as they are.
func takeMeta(dir *os.File, of upperwire.Entry) error {
	had, err := attributes(dir)
	if err != nil {
		return err
	}
	for _, x := range had {
		if err := unix.Fremovexattr(int(dir.Fd()), x.Name); err != nil {
			return os.NewSyscallError("removexattr", err)
		}
	}
	return fileMeta(dir, of)
}

// attributes are the extended attributes of a directory that belong to it wherever it is.
func attributes(f *os.File) (out []upperwire.Xattr, err error) {
	buf := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(int(f.Fd()), buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("listxattr", err)
	}
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if !upperwire.Attribute(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err != nil {
			return nil, os.NewSyscallError("getxattr", err)
		}
		out = append(out, upperwire.Xattr{Name: name, Value: string(value[:n])})
	}
	return out, nil
}
