// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"path"
)

// oneAtATime are the requests that change files, mounts, network or containers of the guest. They run one after
// the other, so that none of them changes state that another one has checked. Requests on the processes of one
// container are ordered by the container's state instead. Requests that only read or wait run concurrently.
// RemoveContainer takes its turn when the processes have ended.
var oneAtATime = map[string]bool{
	"CreateSandbox": true, "CreateContainer": true, "UpdateContainer": true, "UpdateEphemeralMounts": true,
	"CopyFile": true, "UpdateInterface": true, "UpdateRoutes": true, "AddARPNeighbors": true, "OnlineCPUMem": true,
	"SetGuestDateTime": true, "ReseedRandomDev": true,
}

// takeTurn waits until no other request is changing the guest. done ends the turn; after an error it does nothing.
func (s *service) takeTurn(ctx context.Context) (done func(), err error) {
	// a free turn is taken though ctx has ended: the rest of a removal does not wait
	if err := s.turn.Lock(ctx); err != nil {
		return func() {}, fmt.Errorf("another request is changing the guest: %w", err)
	}
	return s.turn.Unlock, nil
}

// turnFor takes a turn if a method needs one.
func (s *service) turnFor(ctx context.Context, fullMethod string) (done func(), err error) {
	if !oneAtATime[path.Base(fullMethod)] {
		return func() {}, nil
	}
	return s.takeTurn(ctx)
}
