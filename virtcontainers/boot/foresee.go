// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/share"
)

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
		Judge: c.opts.Host.Judge, Policy: d.Data[initdata.FilePolicy], Box: c.sandboxRequest(), Pod: c.opts.ID, Log: c.log,
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
		in.ShmBytes = share.ShmSize(c.opts.Spec)
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
