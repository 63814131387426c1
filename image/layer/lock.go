// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

// lockFile takes the exclusive lock on a lock file; closing the file releases it. The wait in
// the kernel cannot be cancelled, so when ctx ends first, a goroutine stays behind until the current
// holder lets go, which at the latest happens when that process ends.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if !errors.Is(err, unix.EWOULDBLOCK) {
				f.Close()
				return nil, err
			}
			if err := waitLock(ctx, f); err != nil {
				return nil, err
			}
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, err
		}
		if st.Nlink > 0 {
			return f, nil
		}
		f.Close() // Prune removed this lock file; take the new one
	}
}

func waitLock(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- flock(f, unix.LOCK_EX) }()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-done //nolint:errcheck // nobody wants the lock any more
			f.Close()
		}()
		return ctx.Err()
	}
}

// temp is a file that gets its name when it is complete.
type temp struct {
	cache *Cache
	file  *os.File
	name  string // empty: it has none, and vanishes when it is closed
}

// newTemp makes a nameless file, or, where the file system has none, a named one that is locked.
func (c *Cache) newTemp() (*temp, error) {
	dir := c.path(dirTemp)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o400)
	if err == nil {
		return &temp{cache: c, file: os.NewFile(uintptr(fd), dir+"/(nameless)")}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "create file in", Path: dir, Err: err}
	}
	return c.newNamedTemp()
}

// newNamedTemp holds the directory's lock, so that no sweep happens between the making of the
// file and its locking.
func (c *Cache) newNamedTemp() (*temp, error) {
	d, err := os.Open(c.path(dirTemp))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := flock(d, unix.LOCK_SH); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(c.path(dirTemp), "build-")
	if err != nil {
		return nil, err
	}
	t := &temp{cache: c, file: f, name: f.Name()}
	if err := errors.Join(f.Chmod(0o400), flock(f, unix.LOCK_EX)); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// reopen returns a read-only descriptor that holds a shared lock.
func (t *temp) reopen() (*os.File, error) {
	ro, err := os.Open(procPath(t.file))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(flock(t.file, unix.LOCK_SH), flock(ro, unix.LOCK_SH)); err != nil {
		ro.Close()
		return nil, err
	}
	return ro, nil
}

// rename gives the file its final name, atomically and in place of what had it.
func (t *temp) rename(path string) error {
	if t.name == "" {
		name := t.cache.path(dirTemp, "link-"+strconv.FormatUint(rand.Uint64(), 36)) //nolint:gosec // no secret
		if err := flock(t.file, unix.LOCK_SH); err != nil {                          // a sweep must not take it
			return err
		}
		if err := unix.Linkat(unix.AT_FDCWD, procPath(t.file), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: t.file.Name(), New: name, Err: err}
		}
		t.name = name
	}
	if err := os.Rename(t.name, path); err != nil {
		return err
	}
	t.name = ""
	return nil
}

// close releases the file, and removes it if it did not get its final name.
func (t *temp) close() {
	if t.name != "" {
		_ = os.Remove(t.name) // nobody else uses the name; sweep gets what stays
	}
	_ = t.file.Close()
}

// sweep removes temporary files whose process is gone. It is best effort.
func (c *Cache) sweep() {
	d, err := os.Open(c.path(dirTemp))
	if err != nil {
		return
	}
	defer d.Close()
	if flock(d, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return // somebody is making one; next time
	}
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		removeUnused(c.path(dirTemp, name))
	}
}

// removeUnused removes a file that nobody holds a lock on, and says whether it did and its size.
func removeUnused(path string) (size int64, removed bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return 0, false
	}
	return st.Size(), os.Remove(path) == nil
}
