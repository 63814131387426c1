// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/network"
)

func ipNet(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Source routing as the plug-ins of AWS and of Multus make it: no part of it may be missing in the guest.
func TestPolicyRoutingIsTheGuests(t *testing.T) {
	_, podNS := pod(t)
	h := open(t, podNS)
	if g := network.GuestOf(snapshot(t, h), nil); len(g.Rules) > 0 || g.NeedsRules() {
		t.Errorf("a namespace as it begins: %v", g)
	}
	if err := network.Unroutable(snapshot(t, h)); err != nil {
		t.Errorf("a namespace as it begins: %v", err)
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.Src = netlink.FAMILY_V4, 1536, 100, ipNet(t, "10.9.0.3/32")
	mask := uint32(0xff)
	marked := netlink.NewRule()
	marked.Family, marked.Priority, marked.Table, marked.Dst, marked.Mark, marked.Mask = netlink.FAMILY_V6, 7, 200,
		ipNet(t, "fd33::/64"), 9, &mask
	marked.IifName, marked.Invert, marked.SuppressPrefixlen = "eth0", true, 0
	do(t, podNS, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(h.RuleAdd(rule), h.RuleAdd(marked),
			h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.9.0.1"), Table: 100}),
			h.RouteAdd(&netlink.Route{Dst: ipNet(t, "10.60.0.0/16"), Type: unix.RTN_BLACKHOLE}),
			h.RouteAdd(&netlink.Route{Dst: ipNet(t, "fd60::/64"), Type: unix.RTN_PROHIBIT, Table: 300}))
	})
	w, err := network.Plan(snapshot(t, h), network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []*types.Rule{
		{Priority: 1536, Source: "10.9.0.3/32", Action: 1, Table: 100},
		{
			Family: 1, Priority: 7, Dest: "fd33::/64", Mark: 9, Mask: 0xff, Iif: "eth0", Invert: true, Action: 1,
			Table: 200, Suppress: 1,
		},
	}
	if d := cmp.Diff(want, w.Guest.Rules, protocmp.Transform()); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	text := w.Guest.String()
	for _, want := range []string{
		"default via 10.9.0.1 dev eth0 table 100", "blackhole 10.60.0.0/16", "prohibit fd60::/64 table 300 metric 1024",
		"rule 1536 from 10.9.0.3/32 lookup 100",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the guest's configuration %q lacks %q", text, want)
		}
	}
	if !w.Guest.NeedsRules() {
		t.Error("an agent that does not know of it would be told")
	}
	less := w.Guest
	less.Rules = less.Rules[:1]
	if _, news := w.Guest.Since(less); !news {
		t.Error("a rule that came is no news")
	}
}

func TestRulesThatAGuestCannotHaveAreRefusedByName(t *testing.T) {
	_, podNS := pod(t)
	h := open(t, podNS)
	for _, c := range []struct {
		edit func(*netlink.Rule)
		want string
	}{
		{func(r *netlink.Rule) { r.IPProto = unix.IPPROTO_UDP }, "has ipproto"},
		{func(r *netlink.Rule) { r.UIDRange = netlink.NewRuleUIDRange(1, 2) }, "has uidrange"},
		{func(r *netlink.Rule) { r.Table = unix.RT_TABLE_LOCAL }, "looks up the table of local addresses"},
		{func(r *netlink.Rule) { r.Priority = 0 }, "comes before the guest's own addresses"},
	} {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = netlink.FAMILY_V4, 99, 100
		c.edit(r)
		do(t, podNS, func(h *netlink.Handle) error { return h.RuleAdd(r) })
		_, err := network.Plan(snapshot(t, h), network.Options{})
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Plan = %v, want a refusal with %q", err, c.want)
		}
		do(t, podNS, func(h *netlink.Handle) error { return h.RuleDel(r) })
	}
	local := netlink.NewRule()
	local.Family, local.Priority, local.Table = netlink.FAMILY_V4, 0, unix.RT_TABLE_LOCAL
	do(t, podNS, func(h *netlink.Handle) error { return h.RuleDel(local) })
	if _, err := network.Plan(snapshot(t, h), network.Options{}); err == nil ||
		!strings.Contains(err.Error(), "is missing") {
		t.Errorf("without the first rule: %v", err)
	}
}
