// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/decisions"
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

// Decisions are noted by ids, with the denial and without the request's content; health checks are not noted.
func TestDecisionsAreNoted(t *testing.T) {
	const canary = "canary-91"
	hostname := "a"
	p := Policy{Log: &decisions.Log{}, Engine: engine.New(&policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &hostname}},
	})}
	for method, m := range map[string]proto.Message{
		"/grpc.Health/Check": &pb.CheckRequest{},
		"/grpc.AgentService/ExecProcess": &pb.ExecProcessRequest{
			ContainerId: "c", ExecId: "e", Process: &pb.Process{Args: []string{canary}, Env: []string{"A=" + canary}},
		},
	} {
		_, _ = p.Ask(method, m)
	}
	_ = p.Forward(80)
	_, err := p.Ask("/grpc.AgentService/CreateSandbox", &pb.CreateSandboxRequest{Hostname: "a", SandboxId: "b"})
	text := p.Log.Text()
	list, perr := decisions.Parse(text)
	if err != nil || perr != nil || len(list) != 3 {
		t.Fatalf("%v, %v: %q", err, perr, text)
	}
	for i, want := range []string{
		"1 ExecProcess c e: denied [id] ", "2 PortForward 80: denied [capability] ", "3 CreateSandbox: allowed",
	} {
		if got := list[i].String(); !strings.HasPrefix(got, want) {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
	if strings.Contains(text, canary) {
		t.Errorf("the log has what was asked: %s", text)
	}
}

// strict is a policy of Kata's agent that allows what has its name.
type strict struct {
	allows    string
	committed int
}

func (s *strict) Ask(m proto.Message) (func(), error) {
	if name := string(m.ProtoReflect().Descriptor().Name()); name != s.allows {
		return nil, fmt.Errorf("%s is blocked: %w", name, errdefs.ErrPermissionDenied)
	}
	return func() { s.committed++ }, nil
}

func (s *strict) Output(string, string) bool { return s.allows == "ReadStreamRequest" }

// TestAPolicyOfKatasAgentOnlyForbids: it allows nothing that the rest forbids, and is not asked about health.
func TestAPolicyOfKatasAgentOnlyForbids(t *testing.T) {
	const start = "/grpc.AgentService/StartContainer"
	s := &strict{allows: "StartContainerRequest"}
	p := Policy{Open: true, Rego: s}
	g, err := p.Ask(start, &pb.StartContainerRequest{})
	if err != nil {
		t.Fatal(err)
	}
	g.Apply()
	if s.committed != 0 {
		t.Error("it is committed before it was handled")
	}
	if g.Commit(); s.committed != 1 {
		t.Errorf("it is committed %d times", s.committed)
	}
	_, err = p.Ask("/grpc.AgentService/PauseContainer", &pb.PauseContainerRequest{})
	if !errdefs.IsPermissionDenied(err) {
		t.Errorf("what it forbids: %v", err)
	}
	if _, err := p.Ask("/grpc.Health/Check", &pb.CheckRequest{}); err != nil {
		t.Errorf("a health check: %v", err)
	}
	if err := p.Forward(80); !errdefs.IsPermissionDenied(err) {
		t.Errorf("port-forward: %v", err)
	}
	if err := p.Files(); !errdefs.IsPermissionDenied(err) {
		t.Errorf("what a container has written: %v", err)
	}
	if p.Output("c", "") || !(Policy{Open: true, Rego: &strict{allows: "ReadStreamRequest"}}).Output("c", "") {
		t.Error("the output is not what it says")
	}
	for _, closed := range []Policy{
		{Rego: s}, {Rego: s, Engine: engine.New(nil)}, {Rego: s, Open: true, Distrust: errdefs.ErrAborted},
	} {
		if _, err := closed.Ask(start, &pb.StartContainerRequest{}); err == nil || closed.Forward(80) == nil {
			t.Errorf("%+v is opened by it", closed)
		}
	}
}
