// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"path"
)

// oneAtATime are the requests that change what the guest is made of: files, mounts, network, containers. They
// run one after the other, so that nothing that one of them has looked at is changed by another. What acts on
// the processes of one container is ordered by the container's state instead, and a request that only looks,
// or waits, has to go beside the others. RemoveContainer takes its turn when the processes have ended.
var oneAtATime = map[string]bool{
	"CreateSandbox": true, "CreateContainer": true, "UpdateContainer": true, "UpdateEphemeralMounts": true, "CopyFile": true,
	"UpdateInterface": true, "UpdateRoutes": true, "AddARPNeighbors": true, "OnlineCPUMem": true,
	"SetGuestDateTime": true, "ReseedRandomDev": true,
}

// takeTurn waits until no other request is changing the guest. done ends the turn; after an error it does nothing.
func (s *service) takeTurn(ctx context.Context) (done func(), err error) {
	if err := s.turn.Lock(ctx); err != nil { // a free turn is taken though ctx has ended: the rest of a removal does not wait
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
