// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package foresight asks a pod's policy about requests before a guest can.
package foresight

import (
	"context"
	"log/slog"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/hostapi"
)

// Foresight asks the pod's policy about requests before a guest gets them, so that a pod that the guest would refuse
// fails before a VM is booted or a layer is built for it. The guest decides in any case: where there is no answer, the
// pod goes on.
type Foresight struct {
	Judge  hostapi.Judge
	Policy string
	Box    *agent.CreateSandboxRequest
	Pod    string
	Log    *slog.Logger
}

// Container returns the policy's denial of a container; c nil: of the sandbox. f may be nil.
func (f *Foresight) Container(ctx context.Context, c *agent.CreateContainerRequest) error {
	if f == nil {
		return nil
	}
	err := f.Judge.Foresee(ctx, f.Policy, f.Box, c)
	if err != nil && !errdefs.IsPermissionDenied(err) && ctx.Err() == nil {
		f.Log.Info("the policy is asked by the guest only", "pod", f.Pod, "reason", err)
	}
	if errdefs.IsPermissionDenied(err) {
		return err
	}
	return nil
}
