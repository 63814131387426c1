// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestACodedReasonHasNothingOfTheError(t *testing.T) {
	err := fmt.Errorf("later: %w", failed(phaseServing, errors.New("the pod's secret")))
	var f failure
	if !errors.As(err, &f) || f.phase != phaseServing {
		t.Fatalf("the phase of %v is lost", err)
	}
	for p := phaseUnknown; p <= phasePowerOff; p++ {
		if got := coded(p); phases[p] == "" || strings.Contains(got, "secret") ||
			!strings.HasPrefix(got, fmt.Sprintf("code %d (", p)) {
			t.Errorf("coded(%d) = %q", p, got)
		}
	}
	if failed(phaseRoot, nil) != nil {
		t.Error("no error has become one")
	}
}
