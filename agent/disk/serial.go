// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Serial reads the serial number of a virtio or SCSI disk, whose directory in sysfs is given; "" if it has none.
func Serial(dir string) string {
	if b, err := os.ReadFile(filepath.Join(dir, "serial")); err == nil {
		return strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80"))
	const head = 4 // SPC-4, 7.8.14: type, page, length
	if err != nil || len(b) < head {
		return ""
	}
	return strings.TrimSpace(strings.TrimRight(string(b[head:]), "\x00"))
}

// maxTarget bounds the SCSI targets that BySerial looks at.
const maxTarget = 16

// BySerial finds a disk that the VM has from boot by its serial number. Of several it takes any: a serial number proves
// nothing. On a SCSI bus it looks at one target after the other, because the guest's kernel looks for disks only where
// it is told to. It returns errdefs.ErrNotFound if there is none.
func (f Finder) BySerial(ctx context.Context, serial string) (Disk, error) {
	if f.Load != nil {
		if err := f.Load("virtio_blk"); err != nil && !errdefs.IsNotFound(err) {
			return Disk{}, err
		}
	}
	name := f.named(serial)
	if _, err := os.Stat(filepath.Join(f.Sys, "class/scsi_host/host0")); err == nil {
		for t := 0; name == "" && t < maxTarget; t++ {
			at, err := f.SCSI(fmt.Sprintf("%d:0", t))
			if err == nil {
				_, err = f.Wait(ctx, at)
			}
			if err != nil && !errdefs.IsNotFound(err) {
				return Disk{}, err
			}
			name = f.named(serial)
		}
	}
	if name == "" {
		return Disk{}, fmt.Errorf("no disk has the serial number %q: %w", serial, errdefs.ErrNotFound)
	}
	return f.describe(name)
}

// named returns the name of a disk with the serial number; "" if there is none.
func (f Finder) named(serial string) string {
	dir := filepath.Join(f.Sys, "class/block")
	all, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, d := range all {
		if Serial(filepath.Join(dir, d.Name())) == serial {
			return d.Name()
		}
	}
	return ""
}
