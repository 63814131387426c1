// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"os"
	"testing"

	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// checkActions does actions of the list under both runtimes.
func checkActions(t *testing.T, runc, coco *engine, w frontends.Work) {
	t.Helper()
	side := func(e *engine) frontends.Side {
		cmd := e.command(t.Context())
		return frontends.Side{Command: cmd.Args, Env: cmd.Env, Network: "--network none", AtOnce: "-t 0", Image: image}
	}
	w.Dir, w.Runc, w.Coco = t.TempDir(), side(runc), side(coco)
	w.Version = "Podman " + coco.must("version", "-f", "{{.Client.Version}}")
	frontends.Run(t.Context(), w, func(err error) { t.Error(err) })
}

// TestEveryAction does all actions of the list and writes their results where make frontends wants them.
func TestEveryAction(t *testing.T) {
	if os.Getenv("COCO_FRONTENDS") == "" {
		t.Skip("takes a quarter of an hour: make frontends runs it")
	}
	work, err := frontends.Asked("podman-4", frontends.Podman)
	if err != nil {
		t.Fatal(err)
	}
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		checkActions(t, start(t, "runc"), start(t, "coco-oci"), work)
	})
	checkNothingLeft(t, before)
}
