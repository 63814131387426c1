// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// upperDir is the upper directory of the only container, for the host. Unless running is set, nothing changes it any
// more: the container has ended or is paused.
func (s *service) upperDir(running bool) (string, error) {
	if err := s.Policy.Files(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) != 1 {
		return "", fmt.Errorf("the guest has %d containers, and sends the files of an only one: %w", len(s.containers),
			errdefs.ErrFailedPrecondition)
	}
	for id, c := range s.containers {
		if !running && !c.is(stopped) && !c.is(paused) {
			return "", fmt.Errorf("container %s has not ended and is not paused: %w", id, errdefs.ErrFailedPrecondition)
		}
		return filepath.Join(s.RunDir, strings.TrimPrefix(contract.UpperDir, contract.GuestRoot), id, "fs"), nil
	}
	return "", nil
}

// rootFor returns the root file system of a container, if a file is for it.
func (s *service) rootFor(req *pb.CopyFileRequest) (string, bool) {
	name := req.GetPath()
	if raw := req.GetRawPath(); len(raw) > 0 {
		name = string(raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		root := filepath.Join(c.bundle, contract.RootfsName)
		if strings.HasPrefix(name, root+"/") {
			return root, true
		}
	}
	return "", false
}

// waits says whether a file is the copy of an only container that has not started: Docker 28 writes a container's
// resolv.conf after its creation. A guest with a policy takes no second content of a file that it has judged.
func (s *service) waits(req *pb.CopyFileRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.containers {
		return s.Policy.Files() == nil && len(s.containers) == 1 && c.is(created) && s.copy.Copies(id, req)
	}
	return false
}
