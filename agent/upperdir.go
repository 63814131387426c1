// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

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
