// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standby

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/virtcontainers/state"
)

const never = time.Hour // no check happens

// waiting is a process of the store that waits for pods of a key; what comes is sent to the channel.
func waiting(ctx context.Context, t *testing.T, s Store, key string, interval time.Duration, check func() error) (
	Place, <-chan error, <-chan Message,
) {
	t.Helper()
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	p, err := s.Register()
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Announce(Meta{Key: key, Made: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	ended, came := make(chan error, 1), make(chan Message, 1)
	go func() {
		m, err := l.Wait(ctx, nil, interval, check)
		came <- m
		ended <- err
	}()
	return p, ended, came
}

// Of many pods that want the same VM one gets it, with its files. A pod of another key gets none.
func TestAVMThatWaitsIsTakenOnceAndForItsKeyOnly(t *testing.T) {
	s := Of(t.TempDir())
	_, ended, came := waiting(t.Context(), t, s, "a", never, nil)
	if _, err := s.Take("b", []byte("pod")); !errdefs.IsNotFound(err) {
		t.Errorf("a pod of another key: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p, err := s.Take("a", []byte("pod"), w)
			if err == nil && p.PID == os.Getpid() {
				taken.Add(1)
			} else if !errdefs.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("%d pods have it", n)
	}
	m := <-came
	if err := <-ended; err != nil || string(m.Text) != "pod" || len(m.Files) != 1 {
		t.Fatalf("it got %q with %d files, %v", m.Text, len(m.Files), err)
	}
	_ = w.Close() // the message has the other one
	_, werr := m.Files[0].WriteString("served")
	_ = m.Files[0].Close() // read below
	if text, err := io.ReadAll(r); werr != nil || err != nil || string(text) != "served" {
		t.Errorf("%q came through the file: %v, %v", text, werr, err)
	}
	if n, err := s.Waiting(""); err != nil || n != 0 {
		t.Errorf("%d wait still, %v", n, err)
	}
}

// One that waits ends with its context, with a reason to end, and when a client took it and sent nothing.
func TestAVMThatWaitsEnds(t *testing.T) {
	s := Of(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	_, ended, _ := waiting(ctx, t, s, "a", never, nil)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	why := errors.New("it is too old")
	_, ended, _ = waiting(t.Context(), t, s, "b", time.Millisecond, func() error { return why })
	if err := <-ended; !errors.Is(err, why) {
		t.Error(err)
	}
	p, ended, _ := waiting(t.Context(), t, s, "c", time.Millisecond, func() error { return nil })
	long := time.Now().Add(-2 * takeTimeout)
	meta, taken := filepath.Join(p.Dir, metaName), filepath.Join(p.Dir, takenName)
	if err := errors.Join(os.Rename(meta, taken), os.Chtimes(p.Dir, long, long)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "did not come") {
		t.Error(err)
	}
}

// What a process left that was killed is removed, also while its parent has not reaped it. A client finds nobody.
func TestWhatAKilledOneLeftIsRemoved(t *testing.T) {
	s := Of(t.TempDir())
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	p, err := s.Register()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := state.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(writeJSON(filepath.Join(p.Dir, processName), id),
		writeJSON(filepath.Join(p.Dir, metaName), Meta{Key: "a"}))
	if n, werr := s.Waiting("a"); err != nil || werr != nil || n != 1 {
		t.Fatalf("%d wait, %v, %v", n, err, werr)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for n := 1; n > 0; { // it is a zombie from here on; the kernel has no event that leaves it one
		if n, err = s.Waiting("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Take("a", nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	var cleaned []string
	if err := s.Sweep(func(dir string) error { cleaned = append(cleaned, dir); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.Dir); len(cleaned) != 1 || cleaned[0] != p.Dir || !os.IsNotExist(err) {
		t.Errorf("%v was cleaned, and %s: %v", cleaned, p.Dir, err)
	}
	_ = cmd.Wait() // killed
}

// A VM that could not be made ready is the reason that a client gets, for a while.
func TestAFailureIsTheReasonThatNoneWaits(t *testing.T) {
	s := Of(t.TempDir())
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := s.Fault("a", errors.New("no memory")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take("a", nil); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Error(err)
	}
	if err := errors.Join(s.Fault("a", nil), s.Failed("a")); err != nil {
		t.Error(err)
	}
}

// The directory is refused where others can open it.
func TestTheDirectoryIsItsOwners(t *testing.T) {
	s := Of(t.TempDir())
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}
