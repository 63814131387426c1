// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestConsoleKeepsTheLinesThatTellSomething(t *testing.T) {
	var c Tail
	for i := range 100 {
		c.write(fmt.Appendf(nil, "line %d\r\n", i))
	}
	c.write([]byte("un\x1b[31mfinished"))
	got := c.Lines()
	if len(got) != hypervisor.ConsoleLines || got[0] != "line 86" || got[14] != "un[31mfinished" {
		t.Errorf("Lines() = %q", got)
	}
	c.write([]byte("\n[ 1.0] Kernel panic - not syncing: VFS: no root\nCall Trace:\n"))
	for i := range 200 {
		c.write(fmt.Appendf(nil, " frame %d\n", i))
	}
	if got := c.Lines(); got[7] != "[ 1.0] Kernel panic - not syncing: VFS: no root" ||
		len(got) != hypervisor.ConsoleLines {
		t.Errorf("Lines() = %q, want the panic in the middle", got)
	}
	if c.Panicked() != "VFS: no root" {
		t.Errorf("Panicked() = %q", c.Panicked())
	}
	c = Tail{}
	c.write([]byte(strings.Repeat("x", 100000) + "\n"))
	if l := c.lines[len(c.lines)-1]; len(l) != lineBytes {
		t.Errorf("a long line has %d bytes, want %d", len(l), lineBytes)
	}
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("a\nKernel panic - not syncing: b\n\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		var c Tail
		c.write(b)
		if n := len(c.Lines()); n > hypervisor.ConsoleLines {
			t.Fatalf("%d lines", n)
		}
	})
}
