// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/policy/decisions"
	"github.com/coco-shim/coco/policy/engine"
)

// Policy decides whether a request of the host may be handled. The zero value allows what a guest without a policy
// answers in a TEE: health checks and its end. It is set before the guest serves and does not change.
type Policy struct {
	// Engine has the pod's policy and its state.
	Engine *engine.Engine
	// Distrust says why the guest trusts nothing: it is the answer to every request.
	Distrust error
	// Rego is a policy of Kata's agent, which forbids more than the rest; nil: none.
	Rego Rego
	// Log keeps the decisions, but for those about health checks; nil: they are not kept.
	Log *decisions.Log
	// Open allows everything if there is neither of them. It is for the plain platform only, where no policy protects a
	// guest from its host.
	Open bool
}

// Rego is a policy of Kata's agent; package agent/rego implements it.
type Rego interface {
	// Ask decides about a request. commit is called once it was handled.
	Ask(proto.Message) (commit func(), err error)
	// Output says whether the host may have the output of a process.
	Output(id, exec string) bool
}

// Grant is the permission for one request.
type Grant = engine.Grant

// none is what a guest without a policy answers.
var none = engine.New(nil)

// Ask decides about a request. The grant is applied before the handler gets the message, and committed when the
// handler has succeeded.
func (p Policy) Ask(fullMethod string, m proto.Message) (*Grant, error) {
	grant, err := p.decide(fullMethod, m)
	if !strings.HasPrefix(fullMethod, healthPrefix) {
		var container, exec string
		if r, ok := m.(interface{ GetContainerId() string }); ok {
			container = r.GetContainerId()
		}
		if r, ok := m.(interface{ GetExecId() string }); ok {
			exec = r.GetExecId()
		}
		p.Log.Note(path.Base(fullMethod), container, exec, err)
	}
	return grant, err
}

// decide asks both policies.
func (p Policy) decide(fullMethod string, m proto.Message) (*Grant, error) {
	grant, err := p.ask(fullMethod, m)
	if err != nil || p.Rego == nil || strings.HasPrefix(fullMethod, healthPrefix) {
		return grant, err
	}
	commit, err := p.Rego.Ask(m)
	if err != nil {
		return nil, err
	}
	return grant.And(commit), nil
}

// healthPrefix begins the methods that Kata's policies have no rules for.
const healthPrefix = "/grpc.Health/"

// ask decides without the policy of Kata's agent.
func (p Policy) ask(fullMethod string, m proto.Message) (*Grant, error) {
	switch {
	case p.Distrust != nil:
		return nil, p.Distrust
	case p.Engine != nil:
		return p.Engine.Check(fullMethod, m)
	case p.Open:
		return nil, nil
	}
	return none.Check(fullMethod, m)
}

// Forward decides about a connection to a TCP port of the guest's loopback address. Policies of Kata's agent have no
// rule for it.
func (p Policy) Forward(port uint32) error {
	err := p.forward(port)
	p.Log.Note("PortForward "+strconv.FormatUint(uint64(port), 10), "", "", err)
	return err
}

func (p Policy) forward(port uint32) error {
	switch {
	case p.Distrust != nil:
		return p.Distrust
	case p.Engine != nil:
		return p.Engine.Forward(port)
	case p.Rego != nil:
		return fmt.Errorf("denied: policy.rego has no rule for port-forward (port %d): %w", port,
			errdefs.ErrPermissionDenied)
	case p.Open:
		return nil
	}
	return none.Forward(port)
}

// Resolver decides whether processes of the guest may ask the host for names.
func (p Policy) Resolver() error {
	switch {
	case p.Distrust != nil:
		return p.Distrust
	case p.Engine != nil:
		return p.Engine.Resolver()
	case p.Open:
		return nil
	}
	return none.Resolver()
}

// Files decides whether the host may have what a container has written to its root file system. No policy can say so
// yet.
func (p Policy) Files() error {
	switch {
	case p.Distrust != nil:
		return p.Distrust
	case p.Engine == nil && p.Rego == nil && p.Open:
		return nil
	}
	return fmt.Errorf("the host does not get a container's files from a guest that has a policy: %w",
		errdefs.ErrPermissionDenied)
}

// Stream decides whether the host may open a byte stream for a later request at all.
func (p Policy) Stream() error {
	switch {
	case p.Distrust != nil:
		return p.Distrust
	case p.Engine != nil:
		return p.Engine.Streams()
	case p.Open:
		return nil
	}
	return none.Streams()
}

// Output says whether the host may have the output of a process; otherwise the agent discards it.
func (p Policy) Output(id, exec string) bool {
	return p.output(id, exec) && (p.Rego == nil || p.Rego.Output(id, exec))
}

func (p Policy) output(id, exec string) bool {
	if p.Engine != nil && p.Distrust == nil {
		return p.Engine.Output(id, exec)
	}
	return p.Open
}

// Undone takes the outcome of an undoing and returns it. When it has failed, nobody knows what is mounted where, and
// the policy admits nothing new. A request that was cancelled is no failure: the state is known, and the
// next request continues from it.
func (p Policy) Undone(err error) error {
	if err != nil && p.Engine != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		p.Engine.Broken()
	}
	return err
}

// Exited notes the end of a container's first process.
func (p Policy) Exited(id string, code int) {
	if p.Engine != nil {
		p.Engine.Exited(id, code)
	}
}
