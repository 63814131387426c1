// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
)

// staleLink is the age at which a link was left by a shim that is gone.
const staleLink = time.Hour

// makeStaging makes the directory for links, and removes links that dead shims left there.
func makeStaging(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		at, err := time.Parse(linkTime, e.Name()[:min(len(linkTime), len(e.Name()))])
		if err == nil && time.Since(at) > staleLink {
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// linkTime is the begin of a link's name: the file itself does not know when it was linked.
const linkTime = "20060102T150405Z"

// withLink calls fn with the path of a hard link to a disk's file, which lies in staging meanwhile. link
// is the file's name in /proc.
func withLink(staging, link string, b hypervisor.Block, fn func(path string) error) (err error) {
	path := filepath.Join(staging, time.Now().UTC().Format(linkTime)+"-"+rand.Text())
	if err := unix.Linkat(unix.AT_FDCWD, link, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("the VMM cannot be given its file: it must have a name on the file system of %s: %w: %w",
			staging, &os.LinkError{Op: "link", Old: b.File.Name(), New: path, Err: err}, errdefs.ErrFailedPrecondition)
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	return fn(path)
}
