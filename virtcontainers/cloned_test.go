// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
)

// A guest that begins as a copy of another one has the same random numbers as its siblings until it gets entropy. It
// gets it before its sandbox, so before any process of the pod.
func TestAClonedGuestGetsEntropyFirst(t *testing.T) {
	var given [][]byte
	for range 2 {
		w := newWorld(t)
		w.cloned = true
		p, err := CreatePod(t.Context(), w.options())
		if err != nil {
			t.Fatal(err)
		}
		entropy, sandbox := slices.Index(w.ops, "agent entropy"), slices.Index(w.ops, "agent sandbox")
		if entropy < 0 || sandbox < 0 || entropy > sandbox {
			t.Errorf("operations %v, want entropy before the sandbox", w.ops)
		}
		given = append(given, w.entropy...)
		if err := p.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(given) != 2 || len(given[0]) < 32 || bytes.Equal(given[0], given[1]) {
		t.Errorf("two guests were given %x, want 32 bytes or more each, and different ones", given)
	}
}

func TestABootedGuestHasItsOwnEntropy(t *testing.T) {
	w := newWorld(t)
	p, err := CreatePod(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	if w.did("agent entropy") {
		t.Error("a guest that has booted was given entropy")
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAClonedGuestWithoutEntropyIsNoPod(t *testing.T) {
	w := newWorld(t)
	w.cloned, w.fail = true, "agent entropy"
	p, err := CreatePod(t.Context(), w.options())
	if err == nil || !strings.Contains(err.Error(), "renew the random numbers") {
		t.Fatalf("CreatePod = %v, %v, want an error that names the random numbers", p, err)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func (a *fakeAgent) ReseedRandomDev(_ context.Context, r *agent.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	a.vm.w.mu.Lock()
	a.vm.w.entropy = append(a.vm.w.entropy, r.GetData())
	a.vm.w.mu.Unlock()
	return &emptypb.Empty{}, a.fail("entropy")
}
