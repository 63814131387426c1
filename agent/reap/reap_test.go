// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package reap

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The whole test process has one reaper, as PID 1 has, and inherits orphans.
var reaper *Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	reaper = New()
	code := m.Run()
	reaper.Close()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func spawn(t *testing.T, script string) *Child {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := reaper.Spawn("/bin/sh", []string{"sh", "-c", script},
		&syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wait(t *testing.T, c *Child) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return c.ExitCode()
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0}, {"exit 7", 7}, {"exit 255", 255}, {"kill -9 $$", 137}, {"kill -15 $$", 143},
	} {
		if got := wait(t, spawn(t, tc.script)); got != tc.want {
			t.Errorf("%q ended with %d, want %d", tc.script, got, tc.want)
		}
	}
}

func TestManyAtOnceEachGetItsOwn(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 40 {
		c := spawn(t, "exit "+strconv.Itoa(i))
		wg.Go(func() {
			<-c.Done()
			if c.ExitCode() != i {
				t.Errorf("child %d ended with %d", i, c.ExitCode())
			}
		})
	}
	wg.Wait()
}

func TestSpawnFailureIsTheCallers(t *testing.T) {
	if _, err := reaper.Spawn("/nonesuch", []string{"nonesuch"}, &syscall.ProcAttr{}); err == nil {
		t.Error("Spawn of what does not exist = nil")
	}
}

// gate makes a FIFO on which a script can wait.
func gate(t *testing.T) string {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return fifo
}

// open lets the script go on.
func open(t *testing.T, fifo string) {
	t.Helper()
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
}

// leave starts a process that leaves an orphan behind and returns the orphan's pid.
func leave(t *testing.T, script string) int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pid")
	if got := wait(t, spawn(t, fmt.Sprintf("(%s) & echo $! > %s", script, file))); got != 0 {
		t.Fatalf("parent ended with %d", got)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestWatchOrphan(t *testing.T) {
	fifo := gate(t)
	release := reaper.Hold()
	defer release()
	c, err := reaper.Watch(leave(t, "read x < "+fifo+"; exit 5"))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
		t.Fatal("it has ended before it could")
	default:
	}
	open(t, fifo)
	if got := wait(t, c); got != 5 {
		t.Errorf("orphan ended with %d, want 5", got)
	}
}

func TestWatchFindsAnOrphanThatHasEnded(t *testing.T) {
	release := reaper.Hold()
	fifo := gate(t) // the shell would collect an orphan that ends before itself
	pid := leave(t, "read x < "+fifo+"; exit 6")
	open(t, fifo)
	for gone := false; !gone; { // until it was collected
		gone = unix.Kill(pid, 0) != nil
	}
	c, err := reaper.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	if got := wait(t, c); got != 6 {
		t.Errorf("orphan ended with %d, want 6", got)
	}
	release()
	if _, err := reaper.Watch(pid); err == nil {
		t.Error("its status was kept beyond the last Hold")
	}
}

func TestSignal(t *testing.T) {
	c := spawn(t, "exec sleep 1000")
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, c); got != 143 {
		t.Errorf("ended with %d, want 143", got)
	}
	if err := c.Signal(unix.SIGTERM); !errdefs.IsNotFound(err) ||
		!strings.Contains(err.Error(), "ESRCH: No such process") {
		t.Errorf("signal to what has ended = %v, want ErrNotFound with the phrase that hosts look for", err)
	}
}
