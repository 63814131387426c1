// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostvolume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// IsHosts says whether a device has the path that it has on the host.
func IsHosts(d specs.LinuxDevice) bool {
	var st unix.Stat_t
	return unix.Stat(d.Path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
		int64(unix.Major(st.Rdev)) == d.Major && int64(unix.Minor(st.Rdev)) == d.Minor
}

// OpenDevice opens a block device of the host for one VM alone (O_EXCL). While any process holds the descriptor the
// device cannot be mounted, and a device that is mounted or in use cannot be opened.
func OpenDevice(major, minor int64, readOnly bool) (*os.File, error) {
	uevent, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	if err != nil {
		return nil, fmt.Errorf("block device %d:%d of the host: %w", major, minor, err)
	}
	name := ""
	for line := range strings.Lines(string(uevent)) {
		if v, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			name = strings.TrimSpace(v)
		}
	}
	at, err := hostfs.OpenSource(filepath.Join("/dev", name), true)
	if err != nil {
		return nil, fmt.Errorf("block device %d:%d of the host: %w", major, minor, err)
	}
	defer at.Close()
	return openExclusive(at, readOnly, func(st unix.Stat_t) bool {
		return int64(unix.Major(st.Rdev)) == major && int64(unix.Minor(st.Rdev)) == minor
	})
}

// openExclusive opens a block device that nobody else has. at is looked at first: opening anything else could
// wait, or do something.
func openExclusive(at *os.File, readOnly bool, is func(unix.Stat_t) bool) (*os.File, error) {
	path := at.Name()
	var st unix.Stat_t
	err := unix.Fstat(int(at.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || !is(st)) {
		err = fmt.Errorf("it is another device: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("block device %s: %w", path, err)
	}
	flags := os.O_RDWR | unix.O_EXCL
	if readOnly {
		flags = os.O_RDONLY | unix.O_EXCL
	}
	fd, err := unix.Open(hostfs.Proc(at), flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("block device %s is mounted or in use on the host, and a VM cannot share it: %w", path,
			errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("block device %s of the host: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
