// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MakeSandbox makes the pod of a sandbox that the sandbox API asks for. Its containers come through
// Create; amend adds to their specifications the parts that the daemon leaves to the sandbox. On an
// error nothing is left.
func (s *Service) MakeSandbox(ctx context.Context, r PodRequest, amend func(*specs.Spec)) (Pod, error) {
	if err := s.claimSandbox(r.ID); err != nil {
		return nil, err
	}
	client := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	r.OnOOM = s.onOOM
	pod, err := s.cfg.MakePod(ctx, r)

	s.mu.Lock()
	if err != nil {
		s.podIs(podFailed)
		s.held = false
		s.mu.Unlock()
		if errors.Is(client.Err(), context.Canceled) { // it hung up
			s.Deserted()
		}
		return nil, s.forEvent(r.ID, err)
	}
	s.podIs(podMade)
	s.pod, s.amend = pod, amend
	stopping := s.stopping
	s.mu.Unlock()
	if stopping { // Stop has not seen it
		ctx, cancel := s.detached(ctx, stopTimeout)
		defer cancel()
		if err := pod.Shutdown(ctx); err != nil {
			s.log.Error("end a pod that came too late", "pod", r.ID, "error", err)
		}
		return nil, fmt.Errorf("the shim was told to stop: %w", errdefs.ErrUnavailable)
	}
	return pod, nil
}

func (s *Service) claimSandbox(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return fmt.Errorf("sandbox %s: the shim is stopping: %w", id, errdefs.ErrUnavailable)
	case s.podState != podAbsent || s.held:
		return fmt.Errorf("sandbox %s: this shim serves pod %s: %w", id, s.podID, errdefs.ErrAlreadyExists)
	}
	s.podIs(podMake)
	s.held, s.podID = true, id
	return nil
}

// EndSandbox ends the sandbox's VM and releases the pod's resources on the host. It publishes the exits of processes
// that still ran. It is idempotent: after an error, the next call continues with the resources that are left.
func (s *Service) EndSandbox(ctx context.Context) error {
	s.mu.Lock()
	s.podIs(podEnd)
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil
	}
	ctx, cancel := s.detached(ctx, stopTimeout)
	defer cancel()
	return pod.Shutdown(ctx)
}

// ReleaseSandbox ends the shim after its sandbox. It drops containers that were never deleted.
func (s *Service) ReleaseSandbox(ctx context.Context) {
	s.mu.Lock()
	s.held, s.stopping = false, true
	s.mu.Unlock()
	s.leave(ctx)
}

// complete adds the sandbox's parts to a container's specification.
func (s *Service) complete(spec *specs.Spec) {
	s.mu.Lock()
	amend := s.amend
	s.mu.Unlock()
	if amend != nil {
		amend(spec)
	}
}
