// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"path"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
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

// turnFor takes a turn if a method needs one.
func (s *service) turnFor(ctx context.Context, fullMethod string) (done func(), err error) {
	if !oneAtATime[path.Base(fullMethod)] {
		return func() {}, nil
	}
	return s.turn.Take(ctx)
}

func isPulled(s *pb.Storage) bool { return s.GetDriver() == contract.DriverPull }

// begin gives a request its turn. One for a container whose image the guest pulls waits for the image before that. The
// policy decides about it twice: whether the image is pulled, and in the turn whether the container is made, since
// others may have come in between.
func (s *service) begin(ctx context.Context, fullMethod string, m proto.Message) (done func(), err error) {
	done, err = s.turnFor(ctx, fullMethod)
	req, ok := m.(*pb.CreateContainerRequest)
	if err != nil || !ok || !slices.ContainsFunc(req.Storages, isPulled) {
		return done, err
	}
	_, err = s.Policy.Ask(fullMethod, m)
	done()
	if err != nil {
		return func() {}, err
	}
	return s.turn.TakeAfter(ctx, req.ContainerId, func(ctx context.Context) error {
		return s.Storage.Fetch(ctx, req.Storages)
	})
}
