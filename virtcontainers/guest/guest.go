// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest is the host's connection with the agent of a VM. Connect waits until the agent answers its health
// check; a Link then carries the calls of the agent's protocol, and opens the byte streams and forwarded ports that
// belong to the same agent.
//
// The guest is not trusted. Package answers checks what it sends, each call is bounded in time, and the errors of the
// agent are marked as the guest's words and get a class of errdefs here. When the connection breaks, the error names
// the death of the VM rather than its effect.
//
// Which calls are made, and in which order, is for the users of the package. Each declares the calls that it needs as
// an interface; a Link has them all.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/answers"
)

// LostVM is how long a VM may live on after the connection with its agent has ended.
const LostVM = 5 * time.Second

// VM is the part of a VM that a connection needs.
type VM interface {
	ID() string
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Done() <-chan struct{}
	Err() error
}

// Features are what an agent can do beyond Kata's protocol, and what its guest's kernel can.
type Features struct {
	Streams    bool // byte streams on a port of their own
	Seccomp    bool // filters of system calls
	Removes    bool // removal of copied files
	SignalsAll bool // any signal reaches every process of a container
	Rules      bool // routing rules and further tables
	RawNames   bool // file names that are not UTF-8
	Rewrites   bool // other content for the files of a container that has not started
	OneOutput  bool // one byte stream for both outputs of a process
}

// Link is the connection with a VM's agent. Its methods may be called from several goroutines.
type Link struct {
	agent.AgentServiceService
	vm       VM
	conn     *answers.Conn
	health   agent.HealthService
	client   *ttrpc.Client
	gone     chan struct{} // closed when the connection has ended
	doomed   atomic.Value  // string: why we ended the VM, where we did
	features atomic.Pointer[Features]
	streams  atomic.Uint32 // number of the last byte stream
	timeout  time.Duration
}

// Connect waits until the agent answers. The error of a VM that did not come up tells the phase and
// the last console lines. timeout bounds later calls without a deadline of their own.
func Connect(ctx context.Context, vm VM, timeout time.Duration) (*Link, error) {
	raw, err := vm.Dial(ctx, contract.PortAgent)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	conn, gone := answers.New(raw), make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(gone) }),
		ttrpc.WithUnaryClientInterceptor(answers.Clean))
	l := &Link{
		AgentServiceService: agent.NewAgentServiceClient(client), health: agent.NewHealthClient(client),
		vm: vm, conn: conn, client: client, gone: gone, timeout: timeout,
	}
	l.features.Store(&Features{})
	res, err := l.health.Check(ctx, &agent.CheckRequest{})
	if err == nil && res.GetStatus() != agent.HealthCheckResponse_SERVING {
		err = fmt.Errorf("the agent answers %s: %w", res.GetStatus(), errdefs.ErrUnavailable)
	}
	if err != nil {
		err = l.Fault(ctx, err)
		return nil, errors.Join(fmt.Errorf("agent health check: %w", err), l.Close())
	}
	return l, nil
}

// Close ends the connection.
func (l *Link) Close() error {
	if err := l.client.Close(); err != nil {
		return fmt.Errorf("close the agent's connection: %w", err)
	}
	return nil
}

// Gone is closed when the connection has ended.
func (l *Link) Gone() <-chan struct{} { return l.gone }

// Broken names the violation of the protocol that ended the connection; nil: there was none.
func (l *Link) Broken() error { return l.conn.Err() }

// Heard counts the agent's answers.
func (l *Link) Heard() uint64 { return l.conn.Heard() }

// Ping asks the agent for a sign of life. An error is one too.
func (l *Link) Ping(ctx context.Context) error {
	_, err := l.health.Check(ctx, &agent.CheckRequest{})
	return err
}

// Doom notes why the VM is about to be ended, for the errors of calls that are cut off. The first reason counts.
func (l *Link) Doom(why string) { l.doomed.CompareAndSwap(nil, why) }

// AskDetails reads the agent's features by GetGuestDetails.
func (l *Link) AskDetails(ctx context.Context) error {
	ctx, cancel := l.Within(ctx)
	defer cancel()
	res, err := l.GetGuestDetails(ctx, &agent.GuestDetailsRequest{})
	if err != nil {
		return fmt.Errorf("get guest details: %w", l.Fault(ctx, err))
	}
	d := res.GetAgentDetails()
	has := func(f string) bool { return slices.Contains(d.GetExtraFeatures(), f) }
	l.features.Store(&Features{
		Streams: has(contract.FeatureStreams), Seccomp: d.GetSupportsSeccomp(), Removes: has(contract.FeatureRemove),
		SignalsAll: has(contract.FeatureSignalAll), Rules: has(contract.FeatureRules), RawNames: has(contract.FeatureRawPath),
		OneOutput: has(contract.FeatureOneOutput), Rewrites: has(contract.FeatureRewrite),
	})
	return nil
}

// Features returns the agent's features, none before AskDetails.
func (l *Link) Features() Features { return *l.features.Load() }

// TakesRules reports whether the guest takes routing rules. It asks the agent if it has not said so yet.
func (l *Link) TakesRules(ctx context.Context) (bool, error) {
	if l.Features().Rules {
		return true, nil
	}
	if err := l.AskDetails(ctx); err != nil { // at the start nobody has asked yet
		return false, err
	}
	return l.Features().Rules, nil
}

// Within bounds a call that has no deadline of its own.
func (l *Link) Within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, l.timeout, fmt.Errorf("no answer from the agent within %s: %w", l.timeout,
		context.DeadlineExceeded))
}

// Call makes one call of the agent, bounded in time, and gives its error name and class.
func (l *Link) Call(ctx context.Context, what string, fn func(context.Context) error) error {
	ctx, cancel := l.Within(ctx)
	defer cancel()
	if err := fn(ctx); err != nil {
		return Named(what, l.Fault(ctx, err))
	}
	return nil
}

// Fault gives an agent's error its class. When the connection broke, the reason is the VM's: it is
// waited for shortly.
func (l *Link) Fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !isStatus(err) {
		return context.Cause(ctx)
	}
	if !Lost(err) {
		return Classify(err)
	}
	if lie := l.conn.Err(); lie != nil { // which ends the VM too, for just this reason
		return fmt.Errorf("%w: %w", lie, errdefs.ErrUnavailable)
	}
	t := time.NewTimer(LostVM)
	defer t.Stop()
	select {
	case <-l.vm.Done():
		if why, ok := l.doomed.Load().(string); ok {
			return fmt.Errorf("%w: %w", &hypervisor.DeadError{
				VM: l.vm.ID(), Phase: hypervisor.PhaseRun,
				Reason: "it was ended: " + why,
			}, errdefs.ErrUnavailable)
		}
		if dead := l.vm.Err(); dead != nil {
			return fmt.Errorf("%w: %w", dead, errdefs.ErrUnavailable)
		}
	case <-t.C:
	}
	return fmt.Errorf("the agent's connection broke: %w: %w", err, errdefs.ErrUnavailable)
}
