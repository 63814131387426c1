// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"testing"

	"github.com/containerd/errdefs"
)

// podOf makes a pod of which only the containers matter.
func podOf(states map[string]State) *Pod {
	p := &Pod{containers: map[string]*container{}}
	for id, s := range states {
		p.containers[id] = &container{id: id, init: &process{state: s}}
	}
	return p
}

func TestWhoseProcessIDsAContainerSees(t *testing.T) {
	c := &container{id: "new", init: &process{state: creating}}
	shared := podOf(nil)
	for range 2 {
		if s, target, err := shared.joinPIDs(c, true); !s || target != "" || err != nil {
			t.Errorf("in a pod that shares = %v, %q, %v", s, target, err)
		}
	}
	for _, tc := range []struct {
		name   string
		states map[string]State
		target string
		fails  bool
	}{
		{"one runs, one has ended", map[string]State{"app": Running, "init": Stopped}, "app", false},
		{"it is paused", map[string]State{"app": Paused}, "", true},
		{"two run", map[string]State{"a": Running, "b": Running}, "", true},
		{"nobody runs", nil, "", true},
	} {
		p := podOf(tc.states)
		p.pids = pidsSeparate
		p.containers[c.id] = c
		s, target, err := p.joinPIDs(c, true)
		if s || target != tc.target || errdefs.IsFailedPrecondition(err) != tc.fails {
			t.Errorf("%s: = %v, %q, %v, want target %q", tc.name, s, target, err, tc.target)
		}
	}
	p := podOf(nil)
	if s, target, err := p.joinPIDs(c, false); s || target != "" || err != nil || p.pids != pidsSeparate {
		t.Errorf("a container of its own = %v, %q, %v", s, target, err)
	}
}
