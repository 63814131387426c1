// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coco-shim/coco/api/agent"
)

// forgetful is an agent as Kata's: a process that was waited for is gone, with what it wrote.
type forgetful struct {
	agent.AgentServiceService
	once   sync.Once
	waited chan struct{}
}

func (f *forgetful) WaitProcess(ctx context.Context, r *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	res, err := f.AgentServiceService.WaitProcess(ctx, r)
	f.once.Do(func() { close(f.waited) })
	return res, err
}

func (f *forgetful) ReadStdout(ctx context.Context, r *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	t := time.NewTimer(50 * time.Millisecond) // a busy guest
	defer t.Stop()
	select {
	case <-f.waited:
		return nil, status.Error(codes.NotFound, "process not found")
	case <-t.C:
		return f.AgentServiceService.ReadStdout(ctx, r)
	}
}

func TestAnAgentWithoutByteStreamsLosesNoOutput(t *testing.T) {
	w := newWorld(t)
	w.noStreams = true
	w.lies = &lie{under: func(a agent.AgentServiceService) agent.AgentServiceService {
		return &forgetful{AgentServiceService: a, waited: make(chan struct{})}
	}}
	p, s := start(t, w, w.options("echo", "last words"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(s.Stdout); string(out) != "last words\n" || err != nil {
		t.Errorf("stdout = %q, %v", out, err)
	}
	if _, err := io.ReadAll(s.Stderr); err != nil {
		t.Error(err)
	}
	if st := wait(t, p, ""); st.Code != 0 || st.Reason != "" {
		t.Errorf("exit = %+v", st)
	}
}

func TestAnExitIsToldAlthoughNobodyReadsByCalls(t *testing.T) {
	w := newWorld(t)
	w.noStreams = true
	p, _ := start(t, w, w.options("false"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := wait(t, p, ""); st.Code != 1 {
		t.Errorf("exit = %+v, want 1", st)
	}
}
