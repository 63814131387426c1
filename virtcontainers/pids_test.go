// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestWhoseProcessIDsAContainerSees(t *testing.T) {
	shared := pidsUnknown
	for range 2 {
		if s, target, err := shared.join(true, []string{"app"}); !s || target != "" || err != nil {
			t.Errorf("in a pod that shares = %v, %q, %v", s, target, err)
		}
	}
	for _, tc := range []struct {
		name    string
		running []string
		target  string
		fails   bool
	}{
		{"one runs", []string{"app"}, "app", false},
		{"two run", []string{"a", "b"}, "", true},
		{"nobody runs", nil, "", true},
	} {
		mode := pidsSeparate
		s, target, err := mode.join(true, tc.running)
		if s || target != tc.target || errdefs.IsFailedPrecondition(err) != tc.fails {
			t.Errorf("%s: = %v, %q, %v, want target %q", tc.name, s, target, err, tc.target)
		}
	}
	own := pidsUnknown
	if s, target, err := own.join(false, nil); s || target != "" || err != nil || own != pidsSeparate {
		t.Errorf("a container of its own = %v, %q, %v", s, target, err)
	}
}

func TestOnlyRunningContainersShowTheirProcessIDs(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	running := func(but *Container) int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.runningLocked(but))
	}
	c := ctr(t, p, "c1")
	check := func(when string, want int) {
		t.Helper()
		if got := running(nil); got != want {
			t.Errorf("%s: %d containers run, want %d", when, got, want)
		}
		if got := running(c); got != 0 {
			t.Errorf("%s: %d other containers run", when, got)
		}
	}
	check("created", 0)
	if _, err := c.Init().Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("started", 1)
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("paused", 0)
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Init().Kill(t.Context(), 9, true); err != nil {
		t.Fatal(err)
	}
	wait(t, p, "")
	check("ended", 0)
}
