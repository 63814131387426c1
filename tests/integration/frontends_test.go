// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"testing"

	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// TestEveryAction does ctr's actions of the list and writes their results where make frontends wants them.
func TestEveryAction(t *testing.T) {
	if os.Getenv("COCO_FRONTENDS") == "" {
		t.Skip("takes minutes: make frontends runs it")
	}
	d := daemon(t, primary)
	noLeaks(t)
	w, err := frontends.Asked("ctr", frontends.Ctr)
	if err != nil {
		t.Fatal(err)
	}
	side := func(runtime string) frontends.Side {
		cmd := d.Command(t.Context())
		return frontends.Side{
			Command: cmd.Args, Env: cmd.Env, Runtime: "--runtime " + runtime, Image: harness.Image, Words: frontends.CtrWords,
		}
	}
	w.Dir, w.Runc, w.Coco = t.TempDir(), side(harness.RuncRuntime), side(harness.Runtime)
	w.Version = "ctr " + primary
	frontends.Run(t.Context(), w, func(err error) { t.Error(err) })
}
