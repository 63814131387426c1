// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import "github.com/coco-shim/coco/internal/fsm"

// state is where a sandbox stands.
type state uint8

const (
	created state = iota
	starting
	ready
	stopping
	ended
)

// String is the state as errors say it.
func (s state) String() string {
	return [...]string{"created", "starting", "ready", "stopping", "ended"}[s]
}

// cri is the state in CRI's words: containerd passes them on as they are.
func (s state) cri() string {
	if s == ready {
		return "SANDBOX_READY"
	}
	return "SANDBOX_NOTREADY"
}

type event uint8

const (
	evStart event = iota
	evStarted
	evStop
	evEnded
)

// String is the event as errors say it.
func (e event) String() string {
	return [...]string{"start", "started", "stop", "ended"}[e]
}

// transitions is the life of a sandbox. A stop may overtake a start: the start then ends it.
var transitions = fsm.Table[state, event]{
	{State: created, Event: evStart}: starting,
	{State: created, Event: evStop}:  stopping,

	{State: starting, Event: evStarted}: ready,
	{State: starting, Event: evStop}:    stopping,
	{State: starting, Event: evEnded}:   ended,

	{State: ready, Event: evStop}:  stopping,
	{State: ready, Event: evEnded}: ended,

	{State: stopping, Event: evStop}:  stopping,
	{State: stopping, Event: evEnded}: ended,

	{State: ended, Event: evStop}:  ended,
	{State: ended, Event: evEnded}: ended,
}
