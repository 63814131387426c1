// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// createPulled passes a request for a container whose image the guest pulls, as the server does.
func (f *fixture) createPulled(ctx context.Context, id string) error {
	req := &pb.CreateContainerRequest{
		ContainerId: id, OCI: spec(),
		Storages: []*pb.Storage{{Driver: contract.DriverPull, Source: "r.example/app@sha256:0"}},
	}
	_, err := f.pass(ctx, func(m any) error {
		proto.Merge(m.(proto.Message), req)
		return nil
	}, &ttrpc.UnaryServerInfo{FullMethod: "/grpc.AgentService/CreateContainer"},
		func(ctx context.Context, decode func(any) error) (any, error) {
			var got pb.CreateContainerRequest
			if err := decode(&got); err != nil {
				return nil, err
			}
			return f.CreateContainer(ctx, &got)
		})
	return err
}

// pulling is a guest whose container "new" waits for its image, beside the container "old".
func pulling(t *testing.T) (f *fixture, arrive chan error, result chan error) {
	t.Helper()
	f = newFixture(t)
	f.sandbox(t)
	if err := errors.Join(f.create(t, "old"), f.start(t, "old")); err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	arrive, result = make(chan error, 1), make(chan error, 1)
	f.storage.fetch = func(ctx context.Context) error {
		close(began)
		select {
		case err := <-arrive:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	go func() { result <- f.createPulled(within(t), "new") }()
	<-began
	f.storage.fetch = nil // for others
	return f, arrive, result
}

// left checks that nothing of the container that waits is there.
func (f *fixture) left(t *testing.T) {
	t.Helper()
	if _, err := f.container("new"); !errdefs.IsNotFound(err) {
		t.Errorf("the container is there: %v", err)
	}
	if _, err := os.Stat(f.RunDir + "/new"); err == nil || f.storage.mounts["new"] > 0 {
		t.Errorf("left are %v, mounts %v", err, f.storage.mounts)
	}
}

// While an image is pulled, nothing waits for the registry: neither the processes of other containers nor requests that
// change the guest.
func TestOthersDoNotWaitForAPull(t *testing.T) {
	f, arrive, result := pulling(t)
	if err := errors.Join(f.exec(t, "old", "x"), f.kill(t, "old", "x", 15)); err != nil {
		t.Error(err)
	}
	done, err := f.turnFor(within(t), "/grpc.AgentService/CopyFile")
	if err != nil {
		t.Errorf("a request that changes the guest waits: %v", err)
	}
	done()
	if err := f.createPulled(within(t), "third"); err != nil {
		t.Errorf("another container: %v", err)
	}
	if _, err := f.container("new"); !errdefs.IsNotFound(err) {
		t.Errorf("a container is half created: %v", err)
	}
	arrive <- nil
	if err := <-result; err != nil {
		t.Errorf("the container: %v", err)
	}
	if err := f.start(t, "new"); err != nil {
		t.Error(err)
	}
}

// A removal ends the wait, and a pull that fails leaves nothing.
func TestAContainerIsRemovedDuringItsPull(t *testing.T) {
	f, _, result := pulling(t)
	if err := f.remove(t, "new"); err != nil {
		t.Errorf("remove = %v", err)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "removed before its image was there") {
		t.Errorf("create = %v", err)
	}
	f.left(t)
	if err := f.remove(t, "new"); !errdefs.IsNotFound(err) {
		t.Errorf("remove again = %v", err)
	}
	if err := f.createPulled(within(t), "new"); err != nil {
		t.Errorf("create again = %v", err)
	}

	f, arrive, result := pulling(t)
	arrive <- errors.New("boom")
	if err := <-result; err == nil || !strings.Contains(err.Error(), "create container new: boom") {
		t.Errorf("create = %v", err)
	}
	f.left(t)
}

// The removal counts also when the image is there and the request waits for its turn.
func TestAContainerIsRemovedBeforeItsTurn(t *testing.T) {
	f, arrive, result := pulling(t)
	done, err := f.turn.Take(within(t))
	if err != nil {
		t.Fatal(err)
	}
	arrive <- nil
	if err := f.remove(t, "new"); err != nil {
		t.Errorf("remove = %v", err)
	}
	done()
	if err := <-result; err == nil {
		t.Error("the container is created after its removal")
	}
	f.left(t)
}
