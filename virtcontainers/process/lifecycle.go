// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import "github.com/coco-shim/coco/internal/fsm"

// State is where a process stands. The lower-case states are transitional: an operation has claimed
// the process and works without holding a lock.
type State uint8

// The states.
const (
	creating State = iota
	Created
	starting
	Running
	pausing
	Paused
	resuming
	Stopped
	deleting
	deleted
)

var stateNames = [...]string{
	"being created", "created", "being started", "running", "being paused", "paused",
	"being resumed", "stopped", "being deleted", "deleted",
}

// String names the state as errors do.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// TakesExecs reports whether a container whose first process is in this state takes further ones.
func (s State) TakesExecs() bool {
	switch s {
	case Created, starting, Running, pausing, Paused, resuming:
		return true
	default:
		return false
	}
}

// HasRun reports whether a process in this state was ever started, or has ended.
func (s State) HasRun() bool { return s != creating && s != Created }

// public maps a transitional state to the settled one that it still is to others.
func (s State) public() State {
	switch s {
	case creating, starting:
		return Created
	case pausing:
		return Running
	case resuming:
		return Paused
	case deleting, deleted:
		return Stopped
	default:
		return s
	}
}

type event uint8

const (
	evCreated event = iota
	evStart
	evStarted
	evStartFailed
	evPause
	evPaused
	evPauseFailed
	evResume
	evResumed
	evResumeFailed
	evExited
	evDelete
	evDeleted
	evDeleteFailed
)

var eventNames = [...]string{
	"created", "start", "started", "start failed", "pause", "paused", "pause failed",
	"resume", "resumed", "resume failed", "exited", "delete", "deleted", "delete failed",
}

// String names the event as errors do.
func (e event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return "unknown"
}

// transitions is the lifecycle of a process. An exit may overtake the answer to any request, so
// Stopped takes the answers and stays.
var transitions = fsm.Table[State, event]{
	{State: creating, Event: evCreated}: Created,
	{State: creating, Event: evExited}:  Stopped,

	{State: Created, Event: evStart}:  starting,
	{State: Created, Event: evExited}: Stopped,
	{State: Created, Event: evDelete}: deleting,

	{State: starting, Event: evStarted}:     Running,
	{State: starting, Event: evStartFailed}: Stopped,
	{State: starting, Event: evExited}:      Stopped,

	{State: Running, Event: evPause}:  pausing,
	{State: Running, Event: evExited}: Stopped,

	{State: pausing, Event: evPaused}:      Paused,
	{State: pausing, Event: evPauseFailed}: Running,
	{State: pausing, Event: evExited}:      Stopped,

	{State: Paused, Event: evResume}: resuming,
	{State: Paused, Event: evExited}: Stopped,

	{State: resuming, Event: evResumed}:      Running,
	{State: resuming, Event: evResumeFailed}: Paused,
	{State: resuming, Event: evExited}:       Stopped,

	{State: Stopped, Event: evCreated}:      Stopped,
	{State: Stopped, Event: evStarted}:      Stopped,
	{State: Stopped, Event: evStartFailed}:  Stopped,
	{State: Stopped, Event: evPaused}:       Stopped,
	{State: Stopped, Event: evPauseFailed}:  Stopped,
	{State: Stopped, Event: evResumed}:      Stopped,
	{State: Stopped, Event: evResumeFailed}: Stopped,
	{State: Stopped, Event: evExited}:       Stopped,
	{State: Stopped, Event: evDelete}:       deleting,

	{State: deleting, Event: evExited}:       deleting,
	{State: deleting, Event: evDeleted}:      deleted,
	{State: deleting, Event: evDeleteFailed}: Stopped,
	{State: deleted, Event: evExited}:        deleted,
}
