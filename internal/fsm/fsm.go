// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fsm is a transition table: a lifecycle is an enum of states, an enum of events, and
// the pairs that are allowed.
package fsm

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Key is a state and an event that happens in it.
type Key[S, E comparable] struct {
	State S
	Event E
}

// Table maps each allowed pair to the next state. A pair that is absent is refused.
type Table[S, E comparable] map[Key[S, E]]S

// Next returns the state after event e in state s, or errdefs.ErrFailedPrecondition.
func (t Table[S, E]) Next(s S, e E) (S, error) {
	n, ok := t[Key[S, E]{s, e}]
	if !ok {
		return s, fmt.Errorf("event %v in state %v: %w", e, s, errdefs.ErrFailedPrecondition)
	}
	return n, nil
}
