// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// Two streams of a container that nobody reads held 2 MiB of the shim.
func TestAStreamThatNobodyReadsHoldsTheFirstWindow(t *testing.T) {
	d, m := pair(t)
	_, guest := connect(t, d, m)
	if err := guest.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := guest.Write(make([]byte, 4*guestWindow))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > initialWindow {
		t.Errorf("Write = %d, %v; want at most %d bytes and the deadline's error", n, err, initialWindow)
	}
}

func TestTheWindowGrowsWithTheSecondGrant(t *testing.T) {
	d, m := pair(t)
	host, guest := connect(t, d, m)
	t.Run("in the host", func(t *testing.T) { grows(t, guest, host, hostWindow) })
	t.Run("in the guest", func(t *testing.T) { grows(t, host, guest, guestWindow) })
}

// grows sends bytes from one end to the other, of which window is to be the largest.
func grows(t *testing.T, from, to *Conn, window uint32) {
	t.Helper()
	pass := func(blocks int) uint32 {
		t.Helper()
		buf := make([]byte, initialWindow/4)
		for range blocks {
			if _, err := from.Write(buf); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, buf); err != nil {
				t.Fatal(err)
			}
		}
		to.mu.Lock()
		defer to.mu.Unlock()
		if b := to.in; b.granted+b.read != b.window { // nothing is unread
			t.Errorf("of a window of %d bytes, %d are granted and %d read", b.window, b.granted, b.read)
		}
		return to.in.window
	}
	if w := pass(3); w != initialWindow {
		t.Errorf("the window is %d bytes after one grant", w)
	}
	if w := pass(1); w != window {
		t.Errorf("the window is %d bytes after two grants, want %d", w, window)
	}
	_ = pass(32)
}
