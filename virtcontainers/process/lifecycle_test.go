// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// The table is walked from the first state: every state can be reached and left, an exit is taken
// everywhere, and no settled end is left again.
func TestTheLifecycleIsComplete(t *testing.T) {
	reached := map[State]bool{creating: true}
	for range transitions {
		for k, next := range transitions {
			if reached[k.State] {
				reached[next] = true
			}
		}
	}
	for s := creating; s <= deleted; s++ {
		if !reached[s] {
			t.Errorf("state %q cannot be reached", s)
		}
		if s.String() == "unknown" {
			t.Errorf("state %d has no name", s)
		}
		if _, err := transitions.Next(s, evExited); err != nil {
			t.Errorf("an exit in state %q: %v", s, err)
		}
		if p := s.public(); p != Created && p != Running && p != Paused && p != Stopped {
			t.Errorf("state %q is shown as %q", s, p)
		}
	}
	for e := evCreated; e <= evDeleteFailed; e++ {
		if e.String() == "unknown" {
			t.Errorf("event %d has no name", e)
		}
		if next, err := transitions.Next(deleted, e); err == nil && next != deleted {
			t.Errorf("event %q leads out of deleted to %q", e, next)
		}
		if next, err := transitions.Next(Stopped, e); err == nil && next != Stopped && next != deleting {
			t.Errorf("event %q leads out of stopped to %q", e, next)
		}
	}
	// Each claim of a transitional state can be settled either way, and by an exit.
	for claimed, outcomes := range map[State][]event{
		starting: {evStarted, evStartFailed, evExited}, pausing: {evPaused, evPauseFailed, evExited},
		resuming: {evResumed, evResumeFailed, evExited}, deleting: {evDeleted, evDeleteFailed, evExited},
	} {
		for _, e := range outcomes {
			if _, err := transitions.Next(claimed, e); err != nil {
				t.Errorf("event %q in state %q: %v", e, claimed, err)
			}
		}
	}
}

func TestRefusedEventsNameStateAndObject(t *testing.T) {
	pr := NewExec(nil, &agent.ExecProcessRequest{ContainerId: "c1", ExecId: "e1"}, stream.Wanted{}, Owner{})
	pr.state = creating
	err := pr.to(evPause)
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("to(pause) = %v, want failed precondition", err)
	}
	if got, want := err.Error(),
		"process e1 of container c1 is being created, cannot pause: failed precondition"; got != want {
		t.Errorf("to(pause) = %q, want %q", got, want)
	}
}
