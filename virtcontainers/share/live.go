// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

const (
	// LiveTag is the tag of the virtio-fs device of live files.
	LiveTag  = "live"
	readOnly = " read-only"
)

// volumeSource returns the key of a bind's volume. A live directory has one volume for read-only mounts and another one
// for writable mounts, so that a container with a read-only mount cannot write.
func volumeSource(b volume.Bind) string {
	if b.Kind == volume.Shared && b.ReadOnly {
		return b.Source + readOnly
	}
	return b.Source
}

// shareVolume shows a file or directory of the host to the guest.
func (s *Set) shareVolume(v *shared) (*agent.Storage, error) {
	if s.o.Files == nil {
		return nil, fmt.Errorf("the VM was started without a device for live files: %w", errdefs.ErrFailedPrecondition)
	}
	source, ro := strings.CutSuffix(v.source, readOnly)
	f, err := hostvolume.Open(v.origin, source)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := hostfs.NotPseudo(f); err != nil {
		return nil, err
	}
	if err := s.o.Files.Share(f, path.Base(v.guest), ro); err != nil {
		return nil, err
	}
	s.o.Log.Info("the VM shares files of the host", "pod", s.o.Pod, "source", source, "readOnly", ro)
	return &agent.Storage{
		Driver: contract.DriverVirtioFS, Source: LiveTag, Fstype: "virtiofs", MountPoint: contract.LiveDir, Shared: true,
	}, nil
}
