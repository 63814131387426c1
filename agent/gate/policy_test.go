// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
)

// An unmount that fails closes the guest for what is new. One that was given up in the middle does not. A guest without
// a policy does not ask.
func TestAFailedRemovalBreaksTheGuest(t *testing.T) {
	hostname := "a"
	for _, tc := range []struct {
		err    error
		broken bool
	}{
		{nil, false},
		{errors.New("unmount: EBUSY"), true},
		{fmt.Errorf("unmount: %w", context.DeadlineExceeded), false},
		{fmt.Errorf("unmount: %w", context.Canceled), false},
	} {
		p := Policy{Engine: engine.New(&policy.Policy{
			APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &hostname}},
		})}
		if err := p.Undone(tc.err); !errors.Is(err, tc.err) {
			t.Errorf("Undone(%v) = %v", tc.err, err)
		}
		_, err := p.Ask("/grpc.AgentService/CreateSandbox", &pb.CreateSandboxRequest{Hostname: "a", SandboxId: "b"})
		if errdefs.IsPermissionDenied(err) != tc.broken {
			t.Errorf("after %v: a sandbox: %v", tc.err, err)
		}
	}
	if err := (Policy{Open: true}).Undone(errors.New("x")); err == nil {
		t.Error("the error is lost")
	}
}
