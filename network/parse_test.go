// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/network"
)

// This package and a netlink library read the same routes of a namespace.
func TestRoutesOfEveryKindAreReadAsALibraryReadsThem(t *testing.T) {
	_, pod := pod(t)
	hop := func(s string) *netlink.NexthopInfo { return &netlink.NexthopInfo{Gw: net.ParseIP(s)} }
	want := map[string]network.Route{}
	do(t, pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		index := l.Attrs().Index
		a, b := hop("10.9.0.1"), hop("10.9.0.9")
		a.LinkIndex, b.LinkIndex, b.Flags = index, index, unix.RTNH_F_ONLINK
		_, multi, _ := net.ParseCIDR("10.77.0.0/16")
		_, hole, _ := net.ParseCIDR("10.78.0.0/16")
		_, crossed, _ := net.ParseCIDR("10.79.0.0/16")
		_, other, _ := net.ParseCIDR("fd00:77::/64")
		for _, r := range []netlink.Route{
			{Dst: multi, MultiPath: []*netlink.NexthopInfo{a, b}},
			{Dst: hole, Type: unix.RTN_BLACKHOLE},
			{Dst: crossed, LinkIndex: index, Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::7")}},
			{Dst: other, LinkIndex: index, Table: 300, Priority: 42, MTU: 1280},
		} {
			if err := h.RouteAdd(&r); err != nil {
				return err
			}
		}
		want["10.77.0.0/16"] = network.Route{Multi: []network.NextHop{
			{Link: index, Gateway: netip.MustParseAddr("10.9.0.1")},
			{Link: index, Gateway: netip.MustParseAddr("10.9.0.9"), OnLink: true},
		}}
		want["10.78.0.0/16"] = network.Route{Type: unix.RTN_BLACKHOLE}
		want["10.79.0.0/16"] = network.Route{Link: index, Gateway: netip.MustParseAddr("fe80::7")}
		want["fd00:77::/64"] = network.Route{Link: index, Table: 300, Metric: 42, MTU: 1280}
		return nil
	})
	h, err := network.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s, err := h.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Routes {
		w, ok := want[r.Dst.String()]
		if !ok {
			continue
		}
		delete(want, r.Dst.String())
		same := r.Link == w.Link && r.Gateway == w.Gateway && r.Metric == w.Metric && r.MTU == w.MTU &&
			len(r.Multi) == len(w.Multi)
		for i := range min(len(r.Multi), len(w.Multi)) {
			same = same && r.Multi[i] == w.Multi[i]
		}
		if !same || w.Table != 0 && r.Table != w.Table || w.Type != 0 && r.Type != w.Type {
			t.Errorf("%s = %+v, want %+v", r.Dst, r, w)
		}
	}
	for dst := range want {
		t.Errorf("route to %s not seen", dst)
	}
}
