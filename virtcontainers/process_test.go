// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import "testing"

// struct winsize has 16 bits for each; runc's shim cuts off the others.
func TestATerminalsSizeIsCut(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.First.Terminal, o.First.Stderr = true, false
	p, _ := start(t, w, o)
	if err := proc(t, p, "c1", "").Resize(t.Context(), 70000, 24); err != nil {
		t.Fatal(err)
	}
	a := w.vm().agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.resized.GetColumn() != 70000-65536 || a.resized.GetRow() != 24 {
		t.Errorf("the terminal is resized to %v", a.resized)
	}
}
