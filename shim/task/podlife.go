// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import "github.com/coco-shim/coco/internal/fsm"

// podState is where the service's one pod stands.
type podState uint8

const (
	podAbsent podState = iota
	podMaking          // and its first container, where it has one
	podRunning
	podEnded // no container is made in it any more
)

// String is the state as errors say it.
func (s podState) String() string {
	return [...]string{"absent", "being made", "running", "ended"}[s]
}

type podEvent uint8

const (
	podMake podEvent = iota
	podMade
	podFailed
	podEnd
)

// String is the event as errors say it.
func (e podEvent) String() string { return [...]string{"make", "made", "failed", "end"}[e] }

// podTable is the life of the pod. A pod that could not be made can be asked for again. An end may overtake the making.
var podTable = fsm.Table[podState, podEvent]{
	{State: podAbsent, Event: podMake}: podMaking,
	{State: podAbsent, Event: podEnd}:  podEnded,

	{State: podMaking, Event: podMade}:   podRunning,
	{State: podMaking, Event: podFailed}: podAbsent,
	{State: podMaking, Event: podEnd}:    podEnded,

	{State: podRunning, Event: podEnd}: podEnded,

	{State: podEnded, Event: podMade}:   podEnded,
	{State: podEnded, Event: podFailed}: podEnded,
	{State: podEnded, Event: podEnd}:    podEnded,
}

// podIs lets an event happen to the pod; the caller holds mu. An event that the table refuses changes nothing and is
// logged: it would be a fault of this package.
func (s *Service) podIs(e podEvent) {
	next, err := podTable.Next(s.podState, e)
	if err != nil {
		s.log.Error("the pod's life is out of order", "pod", s.podID, "error", err)
		return
	}
	s.podState = next
}
