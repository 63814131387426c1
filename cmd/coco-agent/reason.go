// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/coco-shim/coco/agent/boot"
)

// phase is a part of the agent's life in which it may fail. Its number is the code that the console of a closed guest
// says in place of an error's text, in which something of the pod's might be.
type phase int

const (
	phaseUnknown phase = iota
	phaseRoot
	phaseMounts
	phaseConsole
	phaseHarden
	phaseModules
	phaseServices
	phaseServing
	phasePowerOff
)

var phases = map[phase]string{
	phaseUnknown: "no phase is known", phaseRoot: "the root cannot be entered",
	phaseMounts:  "a file system cannot be mounted",
	phaseConsole: "the console cannot be silenced", phaseHarden: "a setting of the kernel cannot be made",
	phaseModules: "the list of kernel modules cannot be read", phaseServices: "a service cannot be set up",
	phaseServing: "serving ended", phasePowerOff: "the machine cannot be switched off",
}

// failure is an error with the phase that it arose in.
type failure struct {
	phase phase
	err   error
}

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

func failed(p phase, err error) error {
	if err == nil {
		return nil
	}
	return failure{p, err}
}

// reason is what the console may say of an error.
func reason(err error) string {
	if err == nil || !boot.Closed() {
		return fmt.Sprint(err)
	}
	var f failure
	errors.As(err, &f)
	return coded(f.phase)
}

func coded(p phase) string { return fmt.Sprintf("code %d (%s)", p, phases[p]) }
