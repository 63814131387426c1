// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scratch makes the files of the host that are the disks of writable layers. They are sparse and
// empty; the guest encrypts them with a key of its own, and their data does not outlive the VM.
//
// Unnamed makes a file without a name. The kernel frees its space when the last process that has it
// open ends, so no crash can leave it behind. Named makes one in a directory whose size the kubelet or another
// program counts; its owner removes it with Remove.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// Unnamed makes a disk in dir, which is made if it is missing.
func Unnamed(dir string, sizeMiB uint64) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of writable layers (runtime.scratch_dir): %w", err)
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		f, err = unlinked(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make a writable layer's disk in %s (runtime.scratch_dir): %w", dir, err)
	}
	return sized(f, sizeMiB)
}

// unlinked is for file systems without O_TMPFILE.
func unlinked(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "disk-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Named makes a disk of the given name in dir, which must be there. A file of this name is of an
// earlier VM, whose key is gone: the new one takes its place.
func Named(dir, name string, sizeMiB uint64) (*os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("make a writable layer's disk: %w", err)
	}
	defer d.Close() // nothing was written to it
	if err := unix.Unlinkat(int(d.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("remove a writable layer's old disk: %w",
			&fs.PathError{Op: "unlink", Path: filepath.Join(dir, name), Err: err})
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(d.Fd()), name, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a writable layer's disk: %w",
			&fs.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err})
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, name))
	out, err := sized(f, sizeMiB)
	if err != nil {
		return nil, errors.Join(err, Remove(filepath.Join(dir, name)))
	}
	return out, nil
}

// sized gives a new file its size, or closes it.
func sized(f *os.File, sizeMiB uint64) (*os.File, error) {
	if err := f.Truncate(int64(sizeMiB) * mib); err != nil { //nolint:gosec // the configuration is bounded
		return nil, errors.Join(fmt.Errorf("make a writable layer's disk of %d MiB (runtime.upper_size_mib): %w", sizeMiB,
			err), f.Close())
	}
	return f, nil
}

// Remove removes a disk; one that is gone, with its directory or without, is fine.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a writable layer's disk: %w", err)
	}
	return nil
}
