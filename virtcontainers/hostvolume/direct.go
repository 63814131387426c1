// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostvolume

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// DirectDir is where CSI drivers leave a record for a volume that the host does not mount: a
// directory named base64url(the volume's path) with the file mountInfo.json, as Kata's do.
const DirectDir = "/run/kata-containers/shared/direct-volumes"

// DirectVolume is such a record.
type DirectVolume struct {
	Type     string            `json:"volume-type"` // "block"
	Device   string            `json:"device"`
	FSType   string            `json:"fstype"`
	Metadata map[string]string `json:"metadata"`
	Options  []string          `json:"options"`
}

// maxRecord bounds a record.
const maxRecord = 64 << 10

// ReadDirect returns the record for a volume; nil when there is none.
func ReadDirect(dir, volume string) (*DirectVolume, error) {
	name := filepath.Join(dir, base64.URLEncoding.EncodeToString([]byte(volume)), "mountInfo.json")
	at, err := hostfs.OpenOwned(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("direct volume: %w", err)
	}
	defer at.Close()
	f, err := hostfs.Reopen(at, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("direct volume: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, fmt.Errorf("direct volume: %w", err)
	}
	var v DirectVolume
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("direct volume: %s: %w", name, err)
	}
	return &v, v.check()
}

func (v DirectVolume) check() error {
	switch {
	case v.Type != "block":
		return fmt.Errorf("direct volume of type %q: only block is supported: %w", v.Type, errdefs.ErrNotImplemented)
	case v.FSType != "ext4":
		return fmt.Errorf("direct volume with the file system %q: the guest has ext4 only: %w", v.FSType,
			errdefs.ErrNotImplemented)
	case !filepath.IsAbs(v.Device):
		return fmt.Errorf("direct volume: device %q is not an absolute path: %w", v.Device, errdefs.ErrInvalidArgument)
	}
	_, _, err := v.Group()
	return err
}

// ReadOnly says whether the volume is never written to.
func (v DirectVolume) ReadOnly() bool { return slices.Contains(v.Options, "ro") }

// Group is the group that the volume is given to, if any.
func (v DirectVolume) Group() (id uint32, ok bool, err error) {
	s := v.Metadata["fsGroup"]
	if s == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, false, fmt.Errorf("direct volume: fsGroup %q is not a group: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint32(n), true, nil
}

// Open opens the volume's disk, a block device or a file of an image. The record's author is root; links are
// followed, as those of /dev/disk are.
func (v DirectVolume) Open() (f *os.File, device bool, err error) {
	at, err := hostfs.OpenSource(v.Device, true)
	if err != nil {
		return nil, false, fmt.Errorf("direct volume: %w", err)
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("direct volume: %w", err)
	}
	if st.Mode()&os.ModeDevice != 0 {
		f, err = openExclusive(at, v.ReadOnly(), func(unix.Stat_t) bool { return true })
		return f, true, err
	}
	if !st.Mode().IsRegular() {
		return nil, false, fmt.Errorf("direct volume: %s is neither a block device nor a file: %w", v.Device,
			errdefs.ErrInvalidArgument)
	}
	flags := os.O_RDWR
	if v.ReadOnly() {
		flags = os.O_RDONLY
	}
	f, err = hostfs.Reopen(at, flags)
	if err == nil {
		// Two VMs that write to one file system destroy it. The lock goes with the last descriptor.
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			err = errors.Join(fmt.Errorf("%s is in use by another VM: %w", v.Device, errdefs.ErrFailedPrecondition), f.Close())
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("direct volume: %w", err)
	}
	return f, false, nil
}
