// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/nic"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/users"
)

// cleanTime bounds a clean-up whose caller has no deadline.
const cleanTime = 30 * time.Second

// Cleanup releases the host resources of a pod whose shim is gone, by the journal in its bundle. It is
// idempotent: without a journal it does nothing, and it removes the journal last, so that a clean-up
// that failed can be repeated. A process that only has the id of the pod's VMM is not touched.
func Cleanup(ctx context.Context, bundle string) error {
	return cleanupWith(ctx, bundle, nic.Namespaces{})
}

func cleanupWith(ctx context.Context, bundle string, n boot.Network) error {
	j, err := state.Load(bundle)
	if errors.Is(err, state.ErrNone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	if err := cleanup(ctx, j, n); err != nil {
		return fmt.Errorf("clean pod %s up: %w", j.ID, err)
	}
	return state.Remove(bundle)
}

func cleanup(ctx context.Context, j state.Pod, n boot.Network) error {
	var errs []error
	boot, err := state.BootID()
	if err != nil {
		return err
	}
	for _, p := range []*state.Process{j.VMM, j.Helper} {
		if p != nil && j.BootID == boot {
			if err := p.Kill(ctx); err != nil {
				return err // everything else is in use as long as it lives
			}
		}
	}
	if j.NetNS != "" && len(j.Redirects) > 0 && j.BootID == boot {
		var made []network.Redirect
		for _, r := range j.Redirects {
			made = append(made, network.Redirect{Link: r.Link, Tap: r.Tap})
		}
		errs = append(errs, n.Clean(ctx, j.NetNS, made))
	}
	if j.OwnNetNS != "" {
		errs = append(errs, n.Delete(j.OwnNetNS))
	}
	for _, d := range j.Disks {
		errs = append(errs, state.RemoveDisk(d))
	}
	errs = append(errs, cleanupHooks(ctx, j))
	if j.BootID == boot {
		errs = append(errs, cgroups.Remove(ctx, j.Cgroups))
	}
	if j.StateDir != "" {
		if j.User != 0 {
			errs = append(errs, users.Free(filepath.Dir(j.StateDir), j.User, j.Bundle))
		}
		errs = append(errs, os.RemoveAll(j.StateDir))
	}
	return errors.Join(errs...)
}

func cleanupHooks(ctx context.Context, j state.Pod) error {
	var list []specs.Hook
	for _, h := range j.Hooks {
		s := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout > 0 {
			s.Timeout = &h.Timeout
		}
		list = append(list, s)
	}
	st := specs.State{
		Version: specs.Version, ID: j.ID, Status: specs.StateStopped, Bundle: j.Bundle,
		Annotations: j.Annotations,
	}
	return hooks.RunAll(ctx, "poststop", list, st)
}
