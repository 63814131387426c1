// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/networktest"
)

func twoVeths(t *testing.T) (*networktest.Table, network.Wiring) {
	t.Helper()
	table := networktest.New()
	table.AddVeth("eth0", "02:00:00:00:00:01", 1500, netip.MustParsePrefix("10.1.0.2/24"))
	table.AddVeth("net1", "02:00:00:00:00:02", 9000)
	return table, plan(t, table, network.Options{Queues: 2})
}

func plan(t *testing.T, table *networktest.Table, o network.Options) network.Wiring {
	t.Helper()
	s, err := table.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := network.Plan(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestApplyWiresEveryLinkAndUndoesIt(t *testing.T) {
	table, w := twoVeths(t)
	before := openFiles(t)
	nics, u, err := network.Apply(t.Context(), table, w)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ingress of coco0_eth0", "ingress of coco1_net1", "ingress of eth0", "ingress of net1",
		"redirect coco0_eth0 to eth0", "redirect coco1_net1 to net1", "redirect eth0 to coco0_eth0",
		"redirect net1 to coco1_net1",
		"tap coco0_eth0 mtu 1500 up true", "tap coco1_net1 mtu 9000 up true",
	}
	if d := cmp.Diff(want, table.Leftovers()); d != "" {
		t.Errorf("after Apply (-want +got):\n%s", d)
	}
	if len(nics) != 2 || len(nics[0].Files) != 2 || nics[0].Name != "eth0" || nics[1].MAC != "02:00:00:00:00:02" ||
		nics[1].MTU != 9000 {
		t.Errorf("Apply = %+v", nics)
	}
	if err := nics[0].CloseFiles(); err != nil {
		t.Error(err)
	}
	if err := u.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if left := table.Leftovers(); left != nil {
		t.Errorf("after undo: %v", left)
	}
	if n := openFiles(t); n > before { // fewer: the collector has closed an earlier test's
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestApplyLeavesNothingWhateverFails(t *testing.T) {
	table, w := twoVeths(t)
	_, u, err := network.Apply(t.Context(), table, w)
	if err != nil {
		t.Fatal(err)
	}
	steps := table.Calls()
	if err := u.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for _, after := range []bool{false, true} {
		for n := 1; n <= steps; n++ {
			t.Run(fmt.Sprintf("step %d, effect %t", n, after), func(t *testing.T) {
				table, w := twoVeths(t)
				before := openFiles(t)
				table.FailCall(n, boom, after)
				nics, u, err := network.Apply(t.Context(), table, w)
				if !errors.Is(err, boom) || nics != nil || u != nil {
					t.Fatalf("Apply = %v, %v, %v, want error %v", nics, u, err, boom)
				}
				if !strings.Contains(err.Error(), "join link ") {
					t.Errorf("error does not name the link: %v", err)
				}
				if left := table.Leftovers(); left != nil {
					t.Errorf("left behind: %v", left)
				}
				if n := openFiles(t); n > before { // fewer: the collector has closed an earlier test's
					t.Errorf("%d descriptors, %d before", n, before)
				}
			})
		}
	}
}

func TestApplyUndoesAfterTheRequestWasCancelled(t *testing.T) {
	table, w := twoVeths(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, u, err := network.Apply(ctx, table, w)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := u.Run(ctx); err != nil || table.Leftovers() != nil {
		t.Errorf("undo = %v, left %v", err, table.Leftovers())
	}
	if _, _, err := network.Apply(ctx, table, w); !errors.Is(err, context.Canceled) || table.Leftovers() != nil {
		t.Errorf("Apply = %v, left %v, want context.Canceled", err, table.Leftovers())
	}
}

func TestApplyLeavesAnotherVMAlone(t *testing.T) {
	table, w := twoVeths(t)
	_, u, err := network.Apply(t.Context(), table, w)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Run(t.Context()) //nolint:errcheck // checked elsewhere
	was := table.Leftovers()
	if _, _, err := network.Apply(t.Context(), table, w); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Apply = %v, want errdefs.ErrAlreadyExists", err)
	}
	if d := cmp.Diff(was, table.Leftovers()); d != "" {
		t.Errorf("the first VM's wiring changed (-was +is):\n%s", d)
	}
	s, err := table.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := network.Plan(s, network.Options{}); !errdefs.IsAlreadyExists(err) ||
		!strings.Contains(err.Error(), "tap coco0_eth0 exists") {
		t.Errorf("Plan = %v, want errdefs.ErrAlreadyExists naming the tap", err)
	}
}

func TestACrashedVMsRedirectIsReplaced(t *testing.T) {
	table, w := twoVeths(t)
	nics, _, err := network.Apply(t.Context(), table, w)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nics { // what the kernel does when shim and VMM die
		if err := n.CloseFiles(); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"ingress of eth0", "ingress of net1"}, table.Leftovers()); d != "" {
		t.Fatalf("after the crash (-want +got):\n%s", d)
	}
	again := plan(t, table, network.Options{})
	if !again.Redirects[0].Stale {
		t.Error("the old redirect was not noticed")
	}
	_, u, err := network.Apply(t.Context(), table, again)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Run(t.Context()); err != nil || table.Leftovers() != nil {
		t.Errorf("undo = %v, left %v", err, table.Leftovers())
	}
}

func TestRemoveIsIdempotentAndGoesOn(t *testing.T) {
	table, w := twoVeths(t)
	if _, _, err := network.Apply(t.Context(), table, w); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	table.FailCall(1, boom, false)
	if err := network.Remove(t.Context(), table, w); !errors.Is(err, boom) {
		t.Errorf("Remove = %v, want %v", err, boom)
	}
	if d := cmp.Diff([]string{"ingress of eth0"}, table.Leftovers()); d != "" {
		t.Errorf("after the failed Remove (-want +got):\n%s", d)
	}
	for range 2 {
		if err := network.Remove(t.Context(), table, w); err != nil || table.Leftovers() != nil {
			t.Errorf("Remove = %v, left %v", err, table.Leftovers())
		}
	}
}
