// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/boot"
	"github.com/coco-shim/coco/agent/caller"
	"github.com/coco-shim/coco/agent/secrets"
	"github.com/coco-shim/coco/agent/workload"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/policy/engine"
)

// provisions are files that the guest itself gives to containers: secrets, and the sockets of the workload API.
type provisions struct {
	secrets *secrets.Store
	policy  *engine.Engine
	api     *workload.Server // nil: the policy opens nothing
	caller  *caller.Finder   // nil: there is no port
}

// Add gets a container's secrets, and adds the mount of its socket.
func (p *provisions) Add(ctx context.Context, id string, spec *specs.Spec, u *undo.Stack) ([]specs.Mount, error) {
	mounts, err := p.secrets.Add(ctx, id, spec, u)
	if err != nil || p.api == nil {
		return mounts, err
	}
	if name := p.policy.Workload(id); name != "" {
		mounts = append(mounts, p.api.Mount(name))
	}
	return mounts, nil
}

// openAPI opens the workload API where the policy does.
func (g *guest) openAPI() (err error) {
	p := g.provisions
	if p.policy == nil {
		return nil
	}
	names, port := p.policy.Workloads()
	if len(names) == 0 {
		return nil
	}
	c := workload.Config{
		Dir: workloadDir, Names: names, Port: port, Name: p.policy.Workload, Pass: p.secrets.Pass, Log: g.log,
	}
	if port != 0 {
		if err := g.mods.Load("tcp_diag"); err != nil && !errdefs.IsNotFound(err) { // it may be built into the kernel
			return fmt.Errorf("port %d of the workload API: %w", port, err)
		}
		if p.caller, err = caller.Open(boot.CgroupRoot); err != nil {
			return fmt.Errorf("port %d of the workload API: %w", port, err)
		}
		c.Container = p.caller.Container
	}
	p.api, err = workload.Listen(context.Background(), c)
	return err
}

// Close closes the workload API, and ends coco-trust.
func (p *provisions) Close() error {
	var errs []error
	if p.api != nil {
		errs = append(errs, p.api.Close())
	}
	if p.caller != nil {
		errs = append(errs, p.caller.Close())
	}
	p.secrets.Close()
	return errors.Join(errs...)
}
