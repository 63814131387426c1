// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"testing"

	"github.com/containerd/ttrpc"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
)

// A process ends with the caller that stands for it on the host. Another caller that hangs up changes nothing.
func TestAProcessEndsWithItsOwner(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	f.exec("c1", "x", "/bin/sleep", "1000")
	f.start("c1", "x")
	hangUp := func(ctx context.Context, exec string) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := f.Wait(ctx, &api.WaitRequest{Id: "c1", ExecId: exec})
		return err
	}
	if err := hangUp(t.Context(), "x"); err == nil {
		t.Fatal("a Wait whose caller has hung up is answered")
	}
	if _, p, _, err := f.process("c1", "x"); err != nil || p.hasExited() {
		t.Fatalf("an exec has ended with a caller that only looked: %v", err)
	}
	owner := ttrpc.WithMetadata(t.Context(), ttrpc.MD{bundle.OwnerKey: {"yes"}})
	for _, exec := range []string{"x", ""} {
		if err := hangUp(owner, exec); err == nil {
			t.Error("a Wait whose owner has hung up is answered")
		}
		if code := f.wait("c1", exec); code != killedCode {
			t.Errorf("process %q exits %d without its owner, want %d", exec, code, killedCode)
		}
		_ = hangUp(owner, exec) // when it has ended, either answer is right
		f.remove("c1", exec)
	}
}
