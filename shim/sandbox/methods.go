// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/coco-shim/coco/internal/wire"
	"github.com/coco-shim/coco/shim/rpc"
	"github.com/coco-shim/coco/shim/stats"
	"github.com/coco-shim/coco/shim/task"
)

// specType is how containerd names an OCI specification in JSON: its NRI plugins read the sandbox's.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// method is a method of the service for a sandbox that exists.
type method func(ctx context.Context, b *box, r wire.Fields) (wire.Message, error)

// Register adds the service to a server. Messages are those of runtime/sandbox/v1/sandbox.proto of
// github.com/containerd/containerd/api; every request has the sandbox's id in field 1.
func (s *Service) Register(server *ttrpc.Server) {
	methods := map[string]ttrpc.Method{"CreateSandbox": rpc.Raw(s.createSandbox)}
	for name, m := range map[string]method{
		"StartSandbox":    s.startSandbox,
		"Platform":        s.platform,
		"StopSandbox":     s.stopSandbox,
		"WaitSandbox":     s.waitSandbox,
		"SandboxStatus":   s.sandboxStatus,
		"PingSandbox":     s.pingSandbox,
		"ShutdownSandbox": s.shutdownSandbox,
		"SandboxMetrics":  s.sandboxMetrics,
		"UpdateSandbox":   s.updateSandbox,
	} {
		methods[name] = rpc.Raw(func(ctx context.Context, r wire.Fields) (wire.Message, error) {
			b, err := s.find(r.Text(1))
			if err != nil {
				return nil, err
			}
			return m(ctx, b, r)
		})
	}
	server.RegisterService("containerd.runtime.sandbox.v1.Sandbox", &ttrpc.ServiceDesc{Methods: methods})
}

func (s *Service) createSandbox(_ context.Context, r wire.Fields) (wire.Message, error) {
	var d wire.Reader
	req := request{id: r.Text(1), bundle: r.Text(2), netns: r.Text(5), annotations: d.Map(r, 6)}
	if options, ok := d.Sub(r, 4); ok { // google.protobuf.Any
		req.optionsType, req.options = options.Text(1), []byte(options.Text(2))
	}
	if d.Err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w: %w", req.id, d.Err, errdefs.ErrInvalidArgument)
	}
	return nil, s.create(req)
}

func (s *Service) startSandbox(ctx context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	if err := s.start(ctx, b); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var m wire.Message
	m.Number(1, uint64(b.pid))
	m.Time(2, b.createdAt)
	spec, err := json.Marshal(b.pod.Spec)
	if err != nil {
		return nil, fmt.Errorf("start sandbox %s: encode its specification: %w", b.id, err)
	}
	m.Any(3, specType, spec)
	return m, nil
}

// platform returns the guest's operating system and architecture, which is the host's.
func (s *Service) platform(context.Context, *box, wire.Fields) (wire.Message, error) {
	var p, m wire.Message
	p.Text(1, "linux")
	p.Text(2, runtime.GOARCH)
	m.Sub(1, p)
	return m, nil
}

func (s *Service) stopSandbox(ctx context.Context, b *box, r wire.Fields) (wire.Message, error) {
	if secs := r.Number(2); secs > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(min(secs, 3600))*time.Second)
		defer cancel()
	}
	if err := s.stop(ctx, b); err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", b.id, err)
	}
	return nil, nil
}

// waitSandbox waits for the sandbox's end, also of one that was not started yet.
func (s *Service) waitSandbox(ctx context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	select {
	case <-b.gone:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var m wire.Message
	m.Number(1, uint64(b.status))
	m.Time(2, b.exitedAt)
	return m, nil
}

// sandboxStatus returns the sandbox's state and, after an unexpected end, the reason.
func (s *Service) sandboxStatus(_ context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m wire.Message
	m.Text(1, b.id)
	m.Number(2, uint64(b.pid))
	m.Text(3, b.state.cri())
	if b.reason != "" {
		var info wire.Message // an entry of a map
		info.Text(1, "reason")
		info.Text(2, b.reason)
		m.Sub(4, info)
	}
	m.Time(5, b.createdAt)
	m.Time(6, b.exitedAt)
	return m, nil
}

// pingSandbox succeeds while the sandbox is ready.
func (s *Service) pingSandbox(_ context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	_, err := s.ready(b)
	return nil, err
}

// shutdownSandbox ends the sandbox, if that was not done, and then the shim.
func (s *Service) shutdownSandbox(ctx context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	if err := s.stop(ctx, b); err != nil {
		return nil, fmt.Errorf("shut sandbox %s down: %w", b.id, err)
	}
	s.tasks.ReleaseSandbox(ctx)
	return nil, nil
}

// sandboxMetrics returns the pod's use of the node: the VMM's CPU time and memory.
func (s *Service) sandboxMetrics(_ context.Context, b *box, _ wire.Fields) (wire.Message, error) {
	pod, err := s.ready(b)
	if err != nil {
		return nil, err
	}
	data, err := stats.Process(pod.PID())
	if err != nil {
		return nil, fmt.Errorf("measure sandbox %s: %w", b.id, err)
	}
	var metric, m wire.Message // types/metrics.proto
	metric.Time(1, time.Now())
	metric.Text(2, b.id)
	metric.Any(3, data.GetTypeUrl(), data.GetValue())
	m.Sub(1, metric)
	return m, nil
}

// updateSandbox accepts CRI's changed resources without effect: the VM's size is fixed at its start, and the
// containers' own limits apply.
func (s *Service) updateSandbox(context.Context, *box, wire.Fields) (wire.Message, error) {
	return nil, nil
}

// ready returns the pod of a sandbox that runs.
func (s *Service) ready(b *box) (task.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.state == ready {
		return b.running, nil
	}
	err := fmt.Errorf("sandbox %s is %s, not ready: %w", b.id, b.state, errdefs.ErrFailedPrecondition)
	if b.reason != "" {
		err = fmt.Errorf("%w: %s", err, b.reason)
	}
	return nil, err
}
