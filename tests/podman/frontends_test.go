// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// checkActions does actions of the list under both runtimes.
func checkActions(t *testing.T, runc, coco *engine, selected func(frontends.Action) bool) frontends.Results {
	t.Helper()
	side := func(e *engine) frontends.Side {
		cmd := e.command(t.Context())
		return frontends.Side{Command: cmd.Args, Env: cmd.Env, Network: "--network none", AtOnce: "-t 0", Image: image}
	}
	r := frontends.Run(t.Context(), frontends.Work{
		Engine: frontends.Podman, Dir: t.TempDir(), Runc: side(runc), Coco: side(coco), Select: selected,
	}, func(err error) { t.Error(err) })
	r.Version = "Podman " + coco.must("version", "-f", "{{.Client.Version}}")
	return r
}

// TestEveryAction does all actions of the list and writes their results where make frontends wants them.
func TestEveryAction(t *testing.T) {
	out := os.Getenv("COCO_FRONTENDS")
	if out == "" {
		t.Skip("takes a quarter of an hour: make frontends runs it")
	}
	selected, err := frontends.Asked()
	if err != nil {
		t.Fatal(err)
	}
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		r := checkActions(t, start(t, "runc"), start(t, "coco-oci"), selected)
		if err := r.Write(filepath.Clean(out), selected); err != nil {
			t.Error(err)
		}
	})
	checkNothingLeft(t, before)
}
