// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"errors"
	"testing"
)

func TestWithoutATerminalEachStepIsALine(t *testing.T) {
	var out bytes.Buffer
	p := New(&out)
	p.Step("packages", 3).Done(nil)
	p.Step("kernel", 0).Done(errors.New("no space"))
	p.Wait()
	if want := "packages\nkernel\nkernel: not done\n"; out.String() != want {
		t.Errorf("progress = %q, want %q", out.String(), want)
	}
}
