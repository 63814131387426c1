// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// seals are those that a runtime looks for on itself: exactly these four (crun and runc, cloned_binary.c).
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// binary is the path of the runtime in a sealed file, which is made by the first call and stays for good.
func (r *Runtime) binary() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sealed == nil {
		f, err := seal(r.cfg.Binary)
		if err != nil {
			return "", fmt.Errorf("load %s: %w", r.cfg.Binary, err)
		}
		r.sealed = f
	}
	return fmt.Sprintf("/proc/self/fd/%d", r.sealed.Fd()), nil
}

// seal copies a runtime into a memory file that nobody can change. A container can reach the runtime through
// /proc/PID/exe, so a runtime begins each call by copying itself into such a file and executing that
// (CVE-2019-5736). Executed from one, it goes on at once.
func seal(path string) (_ *os.File, err error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("oci-runtime", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3: all of them can be executed
		fd, err = unix.MemfdCreate("oci-runtime", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "oci-runtime")
	defer func() {
		if err != nil {
			_ = f.Close() // only memory
		}
	}()
	if _, err := io.Copy(f, src); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}
