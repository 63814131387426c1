// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"net/netip"
	"testing"

	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/networktest"
)

// lateLink makes the standby interface, lets a link come and joins the two; it returns the guest's configuration.
func lateLink(t *testing.T, table *networktest.Table) (network.Guest, func() error, error) {
	t.Helper()
	ctx := t.Context()
	nic, u, err := network.Standby(ctx, table)
	if err != nil {
		return network.Guest{}, func() error { return nil }, err
	}
	undo := func() error { return u.Run(ctx) }
	table.AddVeth("eth0", "02:00:00:00:00:01", 1400, netip.MustParsePrefix("10.0.0.2/24"))
	s, err := table.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spare := network.Joint{NIC: nic}
	c := network.Compare(s, []network.Joint{spare}, network.Options{})
	if len(c.Came) != 1 || len(c.Left) != 0 || len(c.Refused) != 0 {
		t.Fatalf("Compare() = %+v", c)
	}
	r := c.Came[0]
	r.Tap = nic.Tap
	if err := network.Connect(ctx, table, r, u); err != nil {
		return network.Guest{}, undo, err
	}
	return network.GuestOf(s, []network.Joint{{Link: r.Link, Index: r.Index, MAC: r.MAC, NIC: nic}}), undo, nil
}

func TestALinkThatCameAfterTheBootIsConnected(t *testing.T) {
	table := networktest.New()
	g, undo, err := lateLink(t, table)
	if err != nil || len(g.Interfaces) != 1 {
		t.Fatalf("guest = %v, %v", g, err)
	}
	if i := g.Interfaces[0]; i.Name != "eth0" || i.Mtu != 1400 || len(i.IPAddresses) == 0 ||
		i.HwAddr == "02:00:00:00:00:01" {
		t.Errorf("the guest is told %v; want the standby interface's MAC", i)
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
			_, undo, err := lateLink(t, table)
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
