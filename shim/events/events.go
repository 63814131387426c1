// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package events publishes task events to containerd, in the order in which they were sent, and
// keeps them while containerd is away.
//
// Events go to containerd's ttrpc event service. When containerd restarts, the publisher dials
// again and repeats the event that was in flight: an event may arrive twice, but none overtakes
// another and no exit is lost. Memory is bounded: past maxQueue the oldest event that is neither
// an exit nor a deletion is dropped, and that is logged. Where no ttrpc address is known, the
// daemon's `publish` command is run instead, once per event.
//
// A Publisher lives from New to Close. Package task makes the events.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/coco-shim/coco/api/containerd"
)

// eventPackage is containerd's package of events, a part of its names of their types.
const eventPackage = "containerd.events."

const (
	maxQueue       = 4096
	forwardTimeout = 5 * time.Second
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = 2 * time.Second
)

// forwarder hands one envelope to containerd. A failed forwarder is closed and made anew.
type forwarder interface {
	Forward(ctx context.Context, envelope *api.Envelope) error
	Close() error
}

// Config names the destination of events.
type Config struct {
	Namespace    string // containerd namespace of every event
	TTRPCAddress string // containerd's ttrpc socket; preferred
	GRPCAddress  string // containerd's gRPC socket, for Binary
	Binary       string // containerd's executable; used when TTRPCAddress is empty
	Log          *slog.Logger
}

type queued struct {
	envelope *api.Envelope
	keep     bool // an exit or deletion: never dropped
}

// Publisher is the ordered queue and the goroutine that empties it.
type Publisher struct {
	namespace string
	log       *slog.Logger
	dial      func(context.Context) (forwarder, error)
	cancel    context.CancelFunc
	done      chan struct{}

	mu     sync.Mutex
	queue  []queued      // guarded by mu; the head stays until it was delivered
	busy   bool          // guarded by mu; the head is on its way and must not be dropped
	closed bool          // guarded by mu
	wake   chan struct{} // capacity 1: something was queued or Close was called
	empty  chan struct{} // guarded by mu; closed when the queue runs empty, nil without waiter
}

// New starts a publisher.
func New(cfg Config) *Publisher {
	dial := func(ctx context.Context) (forwarder, error) { return dialTTRPC(ctx, cfg.TTRPCAddress) }
	switch {
	case cfg.TTRPCAddress != "":
	case cfg.Binary != "":
		dial = func(context.Context) (forwarder, error) { return publishBinary{cfg.Binary, cfg.GRPCAddress}, nil }
	default:
		dial = func(context.Context) (forwarder, error) {
			return nil, permanent{errors.New("events have nowhere to go: neither TTRPC_ADDRESS nor -publish-binary is set")}
		}
	}
	return newPublisher(cfg.Namespace, cfg.Log, dial)
}

func newPublisher(namespace string, log *slog.Logger, dial func(context.Context) (forwarder, error)) *Publisher {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Publisher{
		namespace: namespace, log: log, dial: dial, cancel: cancel,
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	go p.run(ctx)
	return p
}

// Send queues an event. It never blocks and never fails for a known event type; after Close the
// event is logged and forgotten.
func (p *Publisher) Send(event proto.Message) {
	topic, keep := topicOf(event)
	value, err := proto.Marshal(event)
	if topic == "" || err != nil {
		p.log.Error("event not published", "type", fmt.Sprintf("%T", event), "error", err)
		return
	}
	e := &api.Envelope{
		Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic,
		Event: &anypb.Any{TypeUrl: eventPackage + string(event.ProtoReflect().Descriptor().Name()), Value: value},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.log.Warn("event after close not published", "topic", topic)
		return
	}
	p.makeRoomLocked()
	p.queue = append(p.queue, queued{e, keep})
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Publisher) makeRoomLocked() {
	if len(p.queue) < maxQueue {
		return
	}
	first := 0
	if p.busy {
		first = 1
	}
	for i := first; i < len(p.queue); i++ {
		if !p.queue[i].keep {
			p.log.Warn("event dropped: containerd has been away for long", "topic", p.queue[i].envelope.Topic)
			p.queue = append(p.queue[:i], p.queue[i+1:]...)
			return
		}
	}
}

// Flush waits until every event sent so far was delivered or ctx ends.
func (p *Publisher) Flush(ctx context.Context) error {
	p.mu.Lock()
	if len(p.queue) == 0 {
		p.mu.Unlock()
		return nil
	}
	if p.empty == nil {
		p.empty = make(chan struct{})
	}
	empty := p.empty
	p.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-p.done:
		return fmt.Errorf("publish events: publisher closed: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		p.mu.Lock()
		n := len(p.queue)
		p.mu.Unlock()
		return fmt.Errorf("publish %d remaining events: %w", n, ctx.Err())
	}
}

// Close delivers the queued events, for as long as ctx allows, and stops the publisher.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.cancel()
	<-p.done
	return err
}

func (p *Publisher) run(ctx context.Context) {
	defer close(p.done)
	var conn forwarder
	defer func() {
		if conn != nil {
			_ = conn.Close() // the process or the publisher ends
		}
	}()
	for ctx.Err() == nil {
		head, ok := p.head()
		if !ok {
			select {
			case <-p.wake:
			case <-ctx.Done():
			}
			continue
		}
		conn = p.deliver(ctx, conn, head)
	}
}

// deliver forwards one event, for as long as it takes, and returns the connection to go on with.
func (p *Publisher) deliver(ctx context.Context, conn forwarder, e *api.Envelope) forwarder {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		var err error
		if conn == nil {
			conn, err = p.dial(ctx)
		}
		if err == nil {
			err = forward(ctx, conn, e)
		}
		if err == nil {
			p.pop()
			return conn
		}
		if errors.As(err, &permanent{}) {
			p.log.Error("event refused", "topic", e.Topic, "error", err)
			p.pop()
			return conn
		}
		if conn != nil {
			_ = conn.Close() // already broken; the error that matters is err
			conn = nil
		}
		if backoff == minBackoff {
			p.log.Warn("event delayed: containerd does not take it", "topic", e.Topic, "error", err)
		}
		retry := time.NewTimer(backoff)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return nil
		}
	}
}

func forward(ctx context.Context, conn forwarder, e *api.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	return conn.Forward(ctx, e)
}

func (p *Publisher) head() (*api.Envelope, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil, false
	}
	p.busy = true
	return p.queue[0].envelope, true
}

func (p *Publisher) pop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
	p.queue[0] = queued{}
	p.queue = p.queue[1:]
	if len(p.queue) == 0 {
		p.queue = nil // give the array back
		if p.empty != nil {
			close(p.empty)
			p.empty = nil
		}
	}
}

// permanent marks an error that no repetition cures.
type permanent struct{ error }

func (e permanent) Unwrap() error { return e.error }

// topicOf returns containerd's topic for an event and whether the event must never be dropped.
func topicOf(event proto.Message) (topic string, keep bool) {
	switch event.(type) {
	case *api.TaskCreate:
		return "/tasks/create", false
	case *api.TaskStart:
		return "/tasks/start", false
	case *api.TaskOOM:
		return "/tasks/oom", false
	case *api.TaskExit:
		return "/tasks/exit", true
	case *api.TaskDelete:
		return "/tasks/delete", true
	case *api.TaskExecAdded:
		return "/tasks/exec-added", false
	case *api.TaskExecStarted:
		return "/tasks/exec-started", false
	case *api.TaskPaused:
		return "/tasks/paused", false
	case *api.TaskResumed:
		return "/tasks/resumed", false
	}
	return "", false
}
