// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package txn

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tree is a directory of files that are copied from elsewhere.
type Tree struct {
	Path  string
	Files []TreeFile
}

// TreeFile is one file of a tree: Data, or the copy of Source, whose SHA-256 must still be that of the plan.
type TreeFile struct {
	Name   string // relative to the tree
	Mode   fs.FileMode
	Source string // path on the host, not below Disk.Root
	SHA256 string // hex
	Data   []byte
}

func owner(st fs.FileInfo) (uid, gid int) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return 0, 0
}

// newName and oldName are where a file stands before and after its time. Readers of drop-in directories take *.toml
// or *.conf.
func newName(path string) string { return beside(path, ".coco-new") }
func oldName(path string) string { return beside(path, ".coco-old") }

func beside(path, suffix string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+suffix)
}

func (d *Disk) step(op, path string) error {
	if d.Step == nil {
		return nil
	}
	return d.Step(op, path)
}

// do asks, then acts on the path below the root.
func (d *Disk) do(op, path string, act func(at string) error) error {
	if err := d.step(op, path); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return act(d.at(path))
}

// save writes the journal in one step.
func (d *Disk) save(j journal) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := d.mkdirs(filepath.Dir(d.Journal)); err != nil {
		return err
	}
	if err := d.write(newName(d.Journal), &File{Mode: 0o600, Data: text, UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		return err
	}
	return d.rename(newName(d.Journal), d.Journal)
}

// dropJournal removes the journal, and its directory if that is empty.
func (d *Disk) dropJournal() error {
	if err := d.remove(d.Journal); err != nil {
		return err
	}
	if err := d.remove(newName(d.Journal)); err != nil {
		return err
	}
	dir := filepath.Dir(d.Journal)
	for _, dir := range []string{dir, filepath.Dir(dir)} { // PREFIX/state and PREFIX
		if err := d.rmdir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) mkdirs(dir string) error {
	if st, err := os.Stat(d.at(dir)); err == nil && st.IsDir() {
		return nil
	}
	if dir != "/" && dir != "." {
		if err := d.mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return d.do("mkdir", dir, func(at string) error { return os.Mkdir(at, 0o755) })
}

// write makes a file that nothing reads yet, and puts it on the disk.
func (d *Disk) write(path string, f *File) error {
	if f.Mode&fs.ModeSymlink != 0 {
		if err := d.remove(path); err != nil {
			return err
		}
		return d.do("symlink", path, func(at string) error { return os.Symlink(f.Link, at) })
	}
	return d.do("create", path, func(at string) (err error) {
		out, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		half := len(f.Data) / 2
		if _, err := out.Write(f.Data[:half]); err != nil {
			return err
		}
		if err := d.step("write", path); err != nil {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
		if _, err := out.Write(f.Data[half:]); err != nil {
			return err
		}
		return settle(out, f.Mode.Perm(), f.UID, f.GID)
	})
}

// settle gives a file its mode and owner, and waits for the disk.
func settle(out *os.File, mode fs.FileMode, uid, gid int) error {
	if os.Geteuid() == 0 {
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err := out.Chmod(mode); err != nil {
		return err
	}
	return out.Sync()
}

func (d *Disk) rename(from, to string) error {
	return d.do("rename", to, func(at string) error {
		if err := os.Rename(d.at(from), at); err != nil {
			return err
		}
		return syncDir(filepath.Dir(at))
	})
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove removes a file or a link, if it is there.
func (d *Disk) remove(path string) error {
	if _, err := os.Lstat(d.at(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.do("remove", path, os.Remove)
}

// rmdir removes a directory that is empty.
func (d *Disk) rmdir(dir string) error {
	if left, err := os.ReadDir(d.at(dir)); err != nil || len(left) > 0 {
		return nil // not there, or not ours alone
	}
	return d.do("rmdir", dir, os.Remove)
}

// prepare writes the new file beside its path and keeps the old one under a second name.
func (d *Disk) prepare(c Change) error {
	if isDir(c.After) || isDir(c.Before) {
		if c.Before != nil {
			return nil
		}
		return d.makeDir(c) // files of the plan may go into it
	}
	if c.Before != nil {
		if err := d.remove(oldName(c.Path)); err != nil {
			return err
		}
		err := d.do("link", oldName(c.Path), func(at string) error { return linkNoFollow(d.at(c.Path), at) })
		if err != nil {
			return err
		}
	}
	if c.After == nil {
		return nil
	}
	if err := d.write(newName(c.Path), c.After); err != nil {
		return err
	}
	return copyXattrs(d.at(c.Path), d.at(newName(c.Path)))
}

func isDir(f *File) bool { return f != nil && f.Mode.IsDir() }

func linkNoFollow(from, to string) error {
	return unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0)
}

func (d *Disk) makeDir(c Change) error {
	return d.do("mkdir", c.Path, func(at string) error {
		if err := os.Mkdir(at, c.After.Mode.Perm()); err != nil {
			return err
		}
		return os.Chmod(at, c.After.Mode.Perm())
	})
}

// place puts the new state at a path.
func (d *Disk) place(c Change) error {
	switch {
	case isDir(c.After):
		return nil
	case c.After != nil:
		return d.rename(newName(c.Path), c.Path)
	case isDir(c.Before):
		return nil // tidy does it: old files of the plan are still in it
	}
	return d.remove(c.Path)
}

// putBack puts the old state at a path. A file that is neither the old nor the new one belongs to somebody else.
func (d *Disk) putBack(c Change) error {
	if err := d.remove(newName(c.Path)); err != nil {
		return err
	}
	now, err := d.Read(c.Path)
	if err != nil {
		return err
	}
	switch {
	case isDir(c.After) && c.Before == nil:
		return d.rmdir(c.Path)
	case same(now, c.Before):
	case !same(now, c.After):
		return fmt.Errorf("it was changed meanwhile; to keep it as it is, remove %s", d.Journal)
	case c.Before == nil:
		return d.remove(c.Path)
	default:
		return d.restore(c)
	}
	return d.remove(oldName(c.Path))
}

// restore renames the kept file back. After a failed restart it is gone, and its text is in the journal.
func (d *Disk) restore(c Change) error {
	old := oldName(c.Path)
	kept, err := d.Read(old)
	if err != nil {
		return err
	}
	if !same(kept, c.Before) {
		if err := d.write(old, c.Before); err != nil {
			return err
		}
	}
	return d.rename(old, c.Path)
}

// tidy removes the second name of an old file, and an old directory.
func (d *Disk) tidy(c Change) error {
	if isDir(c.Before) && c.After == nil {
		return d.rmdir(c.Path)
	}
	return d.remove(oldName(c.Path))
}

// addTree copies a tree beside its path and renames it into place. One that is there already is the same: its name is
// the hash of what is in it.
func (d *Disk) addTree(t Tree) error {
	tmp := newName(t.Path)
	if err := d.mkdirs(filepath.Dir(t.Path)); err != nil {
		return err
	}
	if err := d.removeAll(tmp); err != nil {
		return err
	}
	for _, f := range t.Files {
		to := filepath.Join(tmp, f.Name)
		if err := d.mkdirs(filepath.Dir(to)); err != nil {
			return err
		}
		if err := d.copyFile(to, f); err != nil {
			return fmt.Errorf("copy %s: %w", f.Name, err)
		}
	}
	return d.rename(tmp, t.Path)
}

func (d *Disk) copyFile(to string, f TreeFile) error {
	if f.Source == "" {
		return d.write(to, &File{Mode: f.Mode, Data: f.Data, UID: os.Getuid(), GID: os.Getgid()})
	}
	return d.do("copy", to, func(at string) (err error) {
		in, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
			return fmt.Errorf("%s changed while it was copied", f.Source)
		}
		return settle(out, f.Mode, os.Getuid(), os.Getgid())
	})
}

// dropTree removes a tree: out of sight first, then file by file.
func (d *Disk) dropTree(path string) error {
	if err := d.removeAll(newName(path)); err != nil {
		return err
	}
	if _, err := os.Lstat(d.at(path)); err == nil {
		if err := d.removeAll(oldName(path)); err != nil {
			return err
		}
		if err := d.rename(path, oldName(path)); err != nil {
			return err
		}
	}
	if err := d.removeAll(oldName(path)); err != nil {
		return err
	}
	return d.rmdir(filepath.Dir(path))
}

func (d *Disk) removeAll(path string) error {
	var all []string
	err := filepath.WalkDir(d.at(path), func(p string, _ fs.DirEntry, err error) error {
		all = append(all, p)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(all) {
		if err := d.do("remove", path, func(string) error { return os.Remove(p) }); err != nil {
			return err
		}
	}
	return nil
}

// copyXattrs gives the new file the old one's extended attributes, such as its SELinux label. A file system without
// them, and an attribute that only the kernel sets, are no fault.
func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		return nil //nolint:nilerr // nothing is there, or the file system has no attributes
	}
	for name := range splitZero(names[:n]) {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			continue
		}
		err = unix.Lsetxattr(to, name, value[:n], 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("copy attribute %s: %w", name, err)
		}
	}
	return nil
}

func splitZero(b []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		start := 0
		for i, c := range b {
			if c == 0 {
				if !yield(string(b[start:i])) {
					return
				}
				start = i + 1
			}
		}
	}
}
