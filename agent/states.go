// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/fsm"
)

// state is the life of a container. Transitional states are claimed under the container's lock
// while the work is done without it.
type state int

const (
	creating state = iota
	created
	starting
	running
	pausing
	paused
	resuming
	stopped
	removing
)

func (s state) String() string {
	return [...]string{
		"being created", "created", "being started", "running", "being paused", "paused",
		"being resumed", "stopped", "being removed",
	}[s]
}

type event string

const (
	evCreated      event = "created"
	evStart        event = "start"
	evStarted      event = "started"
	evStartFailed  event = "start failed"
	evPause        event = "pause"
	evPaused       event = "paused"
	evPauseFailed  event = "pause failed"
	evResume       event = "resume"
	evResumed      event = "resumed"
	evResumeFailed event = "resume failed"
	evExited       event = "exited"
	evRemove       event = "remove"
	evRemoveFailed event = "remove failed"
)

type key = fsm.Key[state, event]

// transitions: the init process may end at any time, also while something else is under way, whose
// outcome then no longer matters.
var transitions = fsm.Table[state, event]{
	{State: creating, Event: evCreated}: created,
	{State: created, Event: evStart}:    starting,

	{State: starting, Event: evStarted}:      running,
	{State: starting, Event: evStartFailed}:  created,
	{State: running, Event: evPause}:         pausing,
	{State: pausing, Event: evPaused}:        paused,
	{State: pausing, Event: evPauseFailed}:   running,
	{State: paused, Event: evResume}:         resuming,
	{State: resuming, Event: evResumed}:      running,
	{State: resuming, Event: evResumeFailed}: paused,

	{State: created, Event: evExited}:  stopped,
	{State: starting, Event: evExited}: stopped,
	{State: running, Event: evExited}:  stopped,
	{State: pausing, Event: evExited}:  stopped,
	{State: paused, Event: evExited}:   stopped,
	{State: resuming, Event: evExited}: stopped,
	{State: removing, Event: evExited}: removing,

	{State: stopped, Event: evStarted}:      stopped,
	{State: stopped, Event: evStartFailed}:  stopped,
	{State: stopped, Event: evPaused}:       stopped,
	{State: stopped, Event: evPauseFailed}:  stopped,
	{State: stopped, Event: evResumed}:      stopped,
	{State: stopped, Event: evResumeFailed}: stopped,

	{State: created, Event: evRemove}: removing,
	{State: running, Event: evRemove}: removing,
	{State: paused, Event: evRemove}:  removing,
	{State: stopped, Event: evRemove}: removing,

	{State: removing, Event: evRemoveFailed}: stopped,
	{State: creating, Event: evRemoveFailed}: stopped, // neither made nor cleaned up
}

// to makes a transition, or returns an error with the current state.
func (c *container) to(e event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, err := transitions.Next(c.state, e)
	if err != nil {
		return fmt.Errorf("%s container %s: it is %s: %w", e, c.id, c.state, errdefs.ErrFailedPrecondition)
	}
	c.state = next
	return nil
}

// settle makes a transition that the table always has from here.
func (c *container) settle(ok bool, yes, no event) {
	e := no
	if ok {
		e = yes
	}
	_ = c.to(e)
}

func (c *container) is(s state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == s
}
