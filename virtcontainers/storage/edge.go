// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
)

// HostMounts returns the mounts at a root file system's directory, for Request.
func HostMounts(root string) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(filepath.Clean(root)))
	if err != nil {
		return nil, fmt.Errorf("mounts at %s: %w", root, err)
	}
	return mounts, nil
}

// Empty reports whether the plan's upper directory holds nothing.
func (p Plan) Empty() (bool, error) {
	if p.Upper == "" {
		return true, nil
	}
	d, err := os.Open(p.Upper)
	if err != nil {
		return false, fmt.Errorf("upper directory: %w", err)
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}
