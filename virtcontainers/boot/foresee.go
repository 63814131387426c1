// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/plan/request"
)

// Foresight asks the pod's policy about requests before a guest gets them, so that a pod that the guest would refuse
// fails before a VM is booted or a layer is built for it. The guest decides in any case: where there is no answer, the
// pod goes on.
type Foresight struct {
	judge  Judge
	policy string
	box    *agent.CreateSandboxRequest
	pod    string
	log    *slog.Logger
}

// Container returns the policy's denial of a container; c nil: of the sandbox. f may be nil.
func (f *Foresight) Container(ctx context.Context, c *agent.CreateContainerRequest) error {
	if f == nil {
		return nil
	}
	err := f.judge.Foresee(ctx, f.policy, f.box, c)
	if err != nil && !errdefs.IsPermissionDenied(err) && ctx.Err() == nil {
		f.log.Info("the policy is asked by the guest only", "pod", f.pod, "reason", err)
	}
	if errdefs.IsPermissionDenied(err) {
		return err
	}
	return nil
}

// verdict is an answer on its way.
type verdict struct {
	done chan struct{} // closed when err is set
	err  error
}

// beginVerdict asks the policy of a pod's initdata about its sandbox and its first container, beside the other steps.
func (c *creation) beginVerdict(d *initdata.Document) error {
	if d == nil || d.Data[initdata.FilePolicy] == "" || c.opts.Host.Judge == nil {
		return nil
	}
	c.Foresight = &Foresight{
		judge: c.opts.Host.Judge, policy: d.Data[initdata.FilePolicy], box: c.sandboxRequest(), pod: c.opts.ID, log: c.log,
	}
	first, err := c.firstRequest()
	if err != nil {
		return err
	}
	v := &verdict{done: make(chan struct{})}
	if !c.Life.Spawn(func(ctx context.Context) {
		defer close(v.done)
		v.err = c.Foresight.Container(ctx, first)
	}) {
		return errEnded
	}
	c.verdict = v
	c.u.Push("end the question to the policy", func(context.Context) error {
		<-v.done // its context has ended
		return nil
	})
	return nil
}

// awaitVerdict waits for the answer. The VM does not start before.
func (c *creation) awaitVerdict(ctx context.Context) error {
	if c.verdict == nil {
		return nil
	}
	select {
	case <-c.verdict.done:
		return c.verdict.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sandboxRequest is what the guest is asked for.
func (c *creation) sandboxRequest() *agent.CreateSandboxRequest {
	in := request.SandboxInput{ID: c.opts.ID, Spec: c.opts.Spec, Alone: c.opts.First != nil, SharedShm: c.SharedShm}
	if c.SharedShm {
		in.ShmBytes = shmSize(c.opts.Spec)
	}
	return request.Sandbox(in)
}

// firstRequest is the request for the container of a pod of one, as far as it is known. nil: there is none, or its
// disks would change it.
func (c *creation) firstRequest() (*agent.CreateContainerRequest, error) {
	f := c.opts.First
	if f == nil || slices.ContainsFunc(f.Spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Type == "b" }) {
		return nil, nil
	}
	out, err := request.Convert(request.Input{ID: f.ID, Spec: f.Spec, SharedShm: c.SharedShm, Rlimits: c.Rlimits})
	if err != nil {
		return nil, err
	}
	return request.Container(request.ContainerInput{
		ID: f.ID, OCI: out.OCI, Terminal: f.Spec.Process != nil && f.Spec.Process.Terminal,
	}), nil
}
