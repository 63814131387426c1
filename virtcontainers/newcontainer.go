// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// CreateContainer makes a container in the guest, up to the point where its process waits to be
// started. On error nothing of it is left.
func (p *Pod) CreateContainer(ctx context.Context, req ContainerRequest) (_ *Container, _ stream.Streams, err error) {
	if !validID(req.ID) {
		return nil, stream.Streams{}, fmt.Errorf("container id %q: %w", req.ID, errBadID)
	}
	c := p.newContainer(req)
	if err := p.reserve(c); err != nil {
		return nil, stream.Streams{}, err
	}
	defer c.spent(time.Now())
	var u undo.Stack
	u.Push("forget container "+c.id, func(context.Context) error { p.forget(c.id); return nil })
	defer u.RunOnError(&err)
	ctx, cancel := context.WithTimeoutCause(ctx, p.opts.Config.Runtime.CreateTimeout,
		fmt.Errorf("not done within runtime.create_timeout of %s: %w", p.opts.Config.Runtime.CreateTimeout,
			context.DeadlineExceeded))
	defer cancel()
	streams, err := c.create(ctx, req, &u)
	if err != nil {
		return nil, stream.Streams{}, guest.Named("create container "+c.id, err)
	}
	c.held.Adopt(&u)
	return c, streams, nil
}

// create does the work of CreateContainer; u undoes it.
func (c *Container) create(ctx context.Context, req ContainerRequest, u *undo.Stack) (stream.Streams, error) {
	p := c.pod
	mounts, err := p.m.Volumes.Plan(req.share())
	if err != nil {
		return stream.Streams{}, err
	}
	c.mounts = mounts
	if f := mounts.Message; f != nil {
		u.Push("close "+f.Name(), func(context.Context) error { return mounts.Close() })
	}
	out, err := request.Convert(request.Input{
		ID: c.id, Spec: req.Spec, SharedShm: p.m.SharedShm, Binds: mounts.Binds,
		Disks: mounts.Disks(), Rlimits: p.m.Rlimits,
	})
	if err != nil {
		return stream.Streams{}, err
	}
	c.init.ExpectMessage(mounts.Message, mounts.MessagePath, out.OCI)
	if out.OCI.GetLinux().GetSeccomp() != nil && !p.m.Agent.Features().Seccomp {
		return stream.Streams{}, fmt.Errorf("linux.seccomp: the guest's agent cannot apply filters: %w",
			errdefs.ErrNotImplemented)
	}
	shared, target, err := p.joinPIDs(c, out.SandboxPidNS)
	if err != nil {
		return stream.Streams{}, err
	}
	if !c.isFirst() && req.Spec.Hooks != nil { // the first one's ran before the VM was launched
		if err := hooks.RunStart(ctx, req.Spec.Hooks, c.state(specs.StateCreating)); err != nil {
			return stream.Streams{}, err
		}
	}
	devices, err := p.m.Volumes.Devices(ctx, mounts)
	if err != nil {
		return stream.Streams{}, err
	}
	asked := request.Container(request.ContainerInput{
		ID: c.id, OCI: out.OCI, Terminal: req.Terminal, Devices: devices, SharedPIDs: shared, PIDsOf: target,
	})
	if asked.Storages, err = c.prepare(ctx, req, asked, out.Copies, mounts, u); err != nil {
		return stream.Streams{}, err
	}
	return c.createInGuest(ctx, asked, u)
}

// createInGuest opens the streams of a container's first process, has the agent create the container with them, and
// watches for the process's end.
func (c *Container) createInGuest(ctx context.Context, req *agent.CreateContainerRequest,
	u *undo.Stack,
) (stream.Streams, error) {
	p := c.pod
	done, err := p.creates.Take(ctx)
	if err != nil {
		return stream.Streams{}, err
	}
	defer done()
	start := time.Now()
	s, n, err := c.init.Open(ctx)
	p.recordStep(c.id, "streams", start)
	if err != nil {
		return stream.Streams{}, p.m.Agent.Fault(ctx, err)
	}
	u.Push("close streams of container "+c.id, func(context.Context) error { return c.init.CloseStreams() })
	u.Push("remove container "+c.id+" in the guest", c.removeInGuest)
	req.StdinPort, req.StdoutPort, req.StderrPort = n.Stdin, n.Stdout, n.Stderr
	defer p.recordStep(c.id, "create", time.Now())
	if _, err := p.m.Agent.CreateContainer(ctx, req); err != nil {
		return stream.Streams{}, p.m.Agent.Fault(ctx, err)
	}
	return c.init.Created(s)
}

// prepare brings a container's layers (as devices), the files of its bind mounts and its volumes into the guest. It
// does so concurrently, since some steps wait for the disk and others for the guest.
func (c *Container) prepare(ctx context.Context, req ContainerRequest, asked *agent.CreateContainerRequest,
	copies []request.Copy, mounts *share.Mounts, u *undo.Stack,
) (_ []*agent.Storage, err error) {
	p := c.pod
	began := time.Now()
	layersDone := began
	g, gctx := errgroup.WithContext(ctx)
	if !c.isFirst() { // the first one was judged before the VM ran
		g.Go(func() error { return p.m.Foresight.Container(gctx, asked) })
	}
	g.Go(func() error { return p.m.Volumes.Copy(gctx, copies, mounts) })
	var shared []*agent.Storage
	g.Go(func() (err error) {
		shared, err = p.m.Volumes.Provide(gctx, mounts)
		return err
	})
	var attached []rootfs.Attached
	var on rootfs.Upper
	pulled := p.m.Pulls.Of(req.Spec)
	g.Go(func() (err error) {
		lr, err := req.layers()
		if err != nil {
			return err
		}
		if pulled != "" { // the guest has no use for the layers that the host has
			on, err = c.writable(gctx, lr, u)
			layersDone = time.Now()
			return err
		}
		o := p.m.Layers(c.isFirst(), p.opts.Host.Layers, lr)
		if o == nil {
			return errShutdown
		}
		list, err := o.Take(gctx)
		if err != nil {
			return err
		}
		p.recordStep(c.id, "layer", began)
		found := time.Now()
		if attached, err = p.m.Disks.Attach(gctx, list, u); err != nil {
			return err
		}
		// After the layers: they tell a snapshot with something in it by its not being empty.
		on, err = c.writable(gctx, lr, u)
		p.recordStep(c.id, "hotplug", found)
		layersDone = time.Now()
		return err
	})
	if err = g.Wait(); err != nil {
		return nil, err
	}
	p.recordStep(c.id, "files", layersDone) // what they took longer than the layers
	var own []*agent.Storage
	if pulled != "" {
		own, err = rootfs.Pulled(c.id, pulled, on)
	} else {
		own, err = rootfs.Storages(c.id, attached, on)
	}
	return joined(shared, own), err
}

// writable provides the storage of the container's writable layer.
func (c *Container) writable(ctx context.Context, lr layers.Request, u *undo.Stack) (rootfs.Upper, error) {
	snapshot, err := lr.Upper()
	if err != nil {
		return rootfs.Upper{}, err
	}
	return c.pod.m.Disks.Writable(ctx, c.id, snapshot, u)
}

// joined puts two lists of storages together, of which some may be in both: a layer that an image and a root file
// system have in common.
func joined(a, b []*agent.Storage) []*agent.Storage {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.ContainsFunc(a, func(o *agent.Storage) bool { return o.GetMountPoint() == s.GetMountPoint() }) {
			out = append(out, s)
		}
	}
	return out
}
