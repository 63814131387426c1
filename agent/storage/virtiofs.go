// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

func init() { register(contract.DriverVirtioFS, driver{shares: true, mount: (*Manager).mountVirtioFS}) }

// mountVirtioFS mounts a directory that the host shares.
func (m *Manager) mountVirtioFS(_ context.Context, point string, mt *mounted, opts options) error {
	if m.HostFiles == nil || !m.HostFiles() {
		return fmt.Errorf("a guest in a TEE mounts nothing that the host shares: %w", errdefs.ErrPermissionDenied)
	}
	tag := mt.storage.GetSource()
	if tag == "" || len(tag) > 36 || strings.ContainsAny(tag, "/\x00") {
		return invalid(fmt.Errorf("virtio-fs tag %.80q", tag))
	}
	for _, o := range opts.data {
		if o != "dax" && o != "dax=always" && o != "dax=never" && o != "dax=inode" {
			return invalid(fmt.Errorf("unknown option %.100q", o))
		}
	}
	opts.flags |= unix.MS_NODEV
	return m.mountAt(point, mt, opts.fileSystem("virtiofs", tag))
}
