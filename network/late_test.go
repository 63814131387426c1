// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/networktest"
)

// lateLink makes the standby interface and then lets links come; it returns what the guest is told.
func lateLink(t *testing.T, table *networktest.Table, names ...string) (network.Guest, func() error, error) {
	t.Helper()
	ctx := t.Context()
	nic, u, err := network.Standby(ctx, table)
	if err != nil {
		return network.Guest{}, func() error { return nil }, err
	}
	undo := func() error { return u.Run(ctx) }
	for i, n := range names {
		table.AddVeth(n, "02:00:00:00:00:0"+string(rune('1'+i)), 1400, netip.MustParsePrefix("10.0.0.2/24"))
	}
	s, err := table.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g, err := network.Connect(ctx, table, nic, s, network.Options{}, u)
	if err == nil && len(g.Interfaces) == 1 && g.Interfaces[0].HwAddr != nic.MAC {
		t.Errorf("the guest is told MAC %s, its interface has %s", g.Interfaces[0].HwAddr, nic.MAC)
	}
	return g, undo, err
}

func TestALinkThatCameAfterTheBootIsConnected(t *testing.T) {
	table := networktest.New()
	g, undo, err := lateLink(t, table, "eth0")
	if err != nil || len(g.Interfaces) != 1 {
		t.Fatalf("Connect() = %v, %v", g, err)
	}
	if i := g.Interfaces[0]; i.Name != "eth0" || i.Mtu != 1400 || len(i.IPAddresses) == 0 {
		t.Errorf("the guest is told %v", i)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if left := table.Leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNoLinkIsNoNetwork(t *testing.T) {
	g, undo, err := lateLink(t, networktest.New())
	if err != nil || len(g.Interfaces) != 0 {
		t.Errorf("Connect() = %v, %v", g, err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
}

func TestTwoLateLinksAreRefused(t *testing.T) {
	table := networktest.New()
	_, undo, err := lateLink(t, table, "eth0", "eth1")
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Connect() = %v, want a failed precondition", err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if left := table.Leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLateConnectionLeavesNothingWhateverFails(t *testing.T) {
	for n := 1; ; n++ {
		for _, after := range []bool{false, true} {
			table := networktest.New()
			table.FailCall(n, errBoom, after)
			_, undo, err := lateLink(t, table, "eth0")
			if err == nil {
				if n < 5 {
					t.Fatalf("call %d did not fail: the injection is broken", n)
				}
				return
			}
			if uerr := undo(); uerr != nil {
				t.Errorf("call %d: undo: %v", n, uerr)
			}
			if left := table.Leftovers(); len(left) > 0 {
				t.Errorf("call %d, after %v: left: %v", n, after, left)
			}
		}
	}
}
