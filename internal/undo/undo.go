// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package undo is a stack of clean-up steps. Every step that acquires something pushes the step
// that releases it; on failure the stack runs in reverse, each step under its own deadline, and
// the errors are joined instead of lost.
package undo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// StepTimeout bounds each single step.
const StepTimeout = 10 * time.Second

type step struct {
	name string
	fn   func(context.Context) error
}

// Stack is a list of clean-up steps. The zero value is ready to use.
type Stack struct {
	mu    sync.Mutex
	steps []step // guarded by mu
}

// Push adds a step that undoes what was just acquired.
func (s *Stack) Push(name string, fn func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, fn})
}

// Run executes the steps in reverse order. A step that succeeds is removed; one that fails stays,
// so that a second Run retries exactly what is left. The context's cancellation is ignored: clean-up
// must happen after the request is gone.
func (s *Stack) Run(ctx context.Context) error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	ctx = context.WithoutCancel(ctx)
	var errs []error
	var left []step
	for i := len(steps) - 1; i >= 0; i-- {
		if err := runStep(ctx, steps[i]); err != nil {
			errs = append(errs, err)
			left = append([]step{steps[i]}, left...)
		}
	}
	s.mu.Lock()
	s.steps = append(left, s.steps...)
	s.mu.Unlock()
	return errors.Join(errs...)
}

func runStep(ctx context.Context, st step) error {
	ctx, cancel := context.WithTimeout(ctx, StepTimeout)
	defer cancel()
	if err := st.fn(ctx); err != nil {
		return fmt.Errorf("undo %s: %w", st.name, err)
	}
	return nil
}

// RunOnError runs the stack when *err is set and joins what went wrong to it. It is meant to be
// deferred right after the stack is declared.
func (s *Stack) RunOnError(err *error) {
	if *err == nil {
		return
	}
	if uerr := s.Run(context.Background()); uerr != nil {
		*err = errors.Join(*err, uerr)
	}
}

// Adopt moves the steps of other on top of s: an object that lives on takes over the clean-up of
// the call that made it.
func (s *Stack) Adopt(other *Stack) {
	other.mu.Lock()
	steps := other.steps
	other.steps = nil
	other.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, steps...)
}
