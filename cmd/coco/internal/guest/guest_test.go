// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestInspectSaysHowAnImageIsMade(t *testing.T) {
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"inspect", t.TempDir()})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "coco guest build") {
		t.Errorf("coco guest inspect of an empty directory = %v, want an error that names coco guest build", err)
	}
}

func TestWithoutATerminalEachStepIsALine(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.Step("packages", 3).Done(nil)
	p.Step("kernel", 0).Done(errors.New("no space"))
	p.wait()
	if want := "packages\nkernel\nkernel: not done\n"; out.String() != want {
		t.Errorf("progress = %q, want %q", out.String(), want)
	}
}
