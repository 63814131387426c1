// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ReadableByAll refuses a boot file that the VMM, which opens it again as a user of its own, could not read.
func ReadableByAll(f *os.File) error {
	st, err := f.Stat()
	if err == nil && st.Mode().Perm()&0o004 == 0 {
		err = fmt.Errorf("%s cannot be read by the VMM, which runs as a user of its own: chmod o+r %[1]s: %w", f.Name(),
			errdefs.ErrFailedPrecondition)
	}
	return err
}

// InMemory is a read-only descriptor of a file in memory that nobody can change.
func InMemory(name string, content []byte) (_ *os.File, err error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	w := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
}
