// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// waits locks a container that this test has locked, and returns when the kernel has the waiter in its list.
func waits(t *testing.T, r Root, id string) (locked chan error) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(r.Dir(id), &st); err != nil {
		t.Fatal(err)
	}
	locked = make(chan error, 1)
	go func() {
		unlock, err := r.Lock(id)
		if err == nil {
			unlock()
		}
		locked <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		list, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(list)) {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", st.Ino)) {
				return locked
			}
		}
	}
	t.Fatal("nobody waits for the lock")
	return nil
}

// TestALockOfWhatIsGone: whoever waited for a container that was removed meanwhile does not take its directory for the
// container, nor for another one of the same name.
func TestALockOfWhatIsGone(t *testing.T) {
	r := Root(t.TempDir())
	for _, again := range []bool{false, true} {
		if _, err := r.Claim("a"); err != nil {
			t.Fatal(err)
		}
		unlock, err := r.Lock("a")
		if err != nil {
			t.Fatal(err)
		}
		locked := waits(t, r, "a")
		if err := r.Remove("a"); err != nil {
			t.Fatal(err)
		}
		if !again {
			unlock()
			if err := <-locked; !errdefs.IsNotFound(err) {
				t.Errorf("Lock() of a container that is gone = %v, want %v", err, errdefs.ErrNotFound)
			}
			continue
		}
		if _, err := r.Claim("a"); err != nil {
			t.Fatal(err)
		}
		other, err := r.Lock("a")
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		select {
		case err := <-locked:
			t.Errorf("Lock() of a container that another invocation has locked = %v, want it to wait", err)
			other()
			continue
		case <-time.After(100 * time.Millisecond):
		}
		other()
		if err := <-locked; err != nil {
			t.Errorf("Lock() of the second container = %v", err)
		}
	}
}
