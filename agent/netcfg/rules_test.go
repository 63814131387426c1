// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
)

// policyOf lists rules and routes beyond the usual, as somebody with `ip` would see them.
func policyOf(t *testing.T, n *Net) []string {
	t.Helper()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := n.nl.RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			if r.Priority != 0 && r.Priority < 32766 {
				out = append(out, fmt.Sprintf("%d: from %v to %v iif %q mark %#x invert %v lookup %d", r.Priority, r.Src, r.Dst,
					r.IifName, r.Mark, r.Invert, r.Table))
			}
		}
	}
	extras, err := n.extras(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range extras {
		if e.proto != unix.RTPROT_KERNEL {
			out = append(out, fmt.Sprintf("%s kind %d metric %d", e.route, e.kind, e.metric))
		}
	}
	slices.Sort(out)
	return out
}

func send(t *testing.T, n *Net, routes []*types.Route, rules []*types.Rule) {
	t.Helper()
	if _, err := n.UpdateRoutes(t.Context(), &pb.Routes{Routes: routes, Rules: rules}); err != nil {
		t.Fatal(err)
	}
}

func TestPolicyRouting(t *testing.T) {
	n := newNet(t, Options{})
	addLink(t, n, "ens3", macA)
	update(t, n, eth0())
	own := netlink.NewRule() // a container's
	own.Family, own.Priority, own.Table = netlink.FAMILY_V4, 5, 77
	if err := n.nl.RuleAdd(own); err != nil {
		t.Fatal(err)
	}
	if err := n.nl.RouteAdd(&netlink.Route{
		Dst: ipNet(pfx("10.77.0.0/16")), Type: unix.RTN_BLACKHOLE,
		Table: 77,
	}); err != nil {
		t.Fatal(err)
	}
	routes := []*types.Route{
		{Dest: "10.1.0.0/24", Device: "eth0", Source: "10.1.0.2", Scope: 253},
		{Gateway: "10.1.0.1", Device: "eth0", Metric: 50},
		{Gateway: "10.1.0.9", Device: "eth0", Metric: 200},
		{Gateway: "10.1.0.1", Device: "eth0", Table: 100},
		{Dest: "10.1.0.0/24", Device: "eth0", Scope: 253, Table: 100},
		{Dest: "10.60.0.0/16", Type: unix.RTN_BLACKHOLE},
		{Dest: "fd60::/64", Type: unix.RTN_UNREACHABLE, Family: types.IPFamily_v6, Metric: 1024},
	}
	rules := []*types.Rule{
		{Priority: 32765, Source: "10.1.0.3/32", Action: 1, Table: 100},
		{Priority: 100, Dest: "10.8.0.0/16", Iif: "eth0", Mark: 7, Mask: 0xff, Invert: true, Action: 1, Table: 100},
		{Priority: 200, Family: types.IPFamily_v6, Source: "fd00::/64", Action: 6},
	}
	want := []string{
		`100: from <nil> to 10.8.0.0/16 iif "eth0" mark 0x7 invert true lookup 100`,
		`200: from fd00::/64 to <nil> iif "" mark 0x0 invert false lookup 0`,
		`32765: from 10.1.0.3/32 to <nil> iif "" mark 0x0 invert false lookup 100`,
		`5: from <nil> to <nil> iif "" mark 0x0 invert false lookup 77`,
		`0.0.0.0/0 via 10.1.0.1 dev eth0 table 100 kind 1 metric 0`,
		`10.1.0.0/24 dev eth0 table 100 kind 1 metric 0`,
		`10.60.0.0/16 kind 6 metric 0`,
		`10.77.0.0/16 table 77 kind 6 metric 0`,
		`fd60::/64 kind 7 metric 1024`,
	}
	slices.Sort(want)
	for _, what := range []string{"first", "repeated"} {
		send(t, n, routes, rules)
		if d := cmp.Diff(want, policyOf(t, n)); d != "" {
			t.Fatalf("%s (-want +got):\n%s", what, d)
		}
	}
	have, err := n.table(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var metrics []string
	for _, e := range have {
		if e.dst.Bits() == 0 && e.dst.Addr().Is4() {
			metrics = append(metrics, fmt.Sprint(e.gateway, " ", e.metric))
		}
	}
	if d := cmp.Diff([]string{"10.1.0.1 50", "10.1.0.9 200"}, metrics); d != "" {
		t.Errorf("default routes (-want +got):\n%s", d)
	}
	send(t, n, routes[:4], rules[:1])
	want = []string{
		`0.0.0.0/0 via 10.1.0.1 dev eth0 table 100 kind 1 metric 0`,
		`10.77.0.0/16 table 77 kind 6 metric 0`,
		`32765: from 10.1.0.3/32 to <nil> iif "" mark 0x0 invert false lookup 100`,
		`5: from <nil> to <nil> iif "" mark 0x0 invert false lookup 77`,
	}
	if d := cmp.Diff(want, policyOf(t, n)); d != "" {
		t.Errorf("with less (-want +got):\n%s", d)
	}
}

func TestHostilePolicyRouting(t *testing.T) {
	n := newNet(t, Options{})
	addLink(t, n, "ens3", macA)
	update(t, n, eth0())
	for _, c := range []struct {
		want  string
		route *types.Route
		rule  *types.Rule
	}{
		{want: "guest's own addresses", route: &types.Route{Device: "eth0", Table: 255}},
		{want: "type 2", route: &types.Route{Device: "eth0", Type: 2}},
		{want: "neither device nor gateway", route: &types.Route{Device: "eth0", Type: 6}},
		{want: "interface name", route: &types.Route{Device: "lo", Table: 9}},
		{want: "not a unicast destination", route: &types.Route{Dest: "127.0.0.0/8", Type: 6}},
		{want: "priority 0", rule: &types.Rule{Action: 1, Table: 9}},
		{want: "priority 4294967295", rule: &types.Rule{Priority: 1<<32 - 1, Action: 1, Table: 9}},
		{want: "looks up table 255", rule: &types.Rule{Priority: 1, Action: 1, Table: 255}},
		{want: "action 2", rule: &types.Rule{Priority: 1, Action: 2}},
		{want: "action 0", rule: &types.Rule{Priority: 1, Table: 9}},
		{want: "action 257", rule: &types.Rule{Priority: 1, Table: 9, Action: 257}},
		{want: `prefix "10.0.0.0/8"`, rule: &types.Rule{Priority: 1, Action: 1, Table: 9, Family: 1, Source: "10.0.0.0/8"}},
		{want: `prefix "10.0.0.1"`, rule: &types.Rule{Priority: 1, Action: 1, Table: 9, Dest: "10.0.0.1"}},
		{want: "tos 256", rule: &types.Rule{Priority: 1, Action: 1, Table: 9, Tos: 256}},
		{want: "interface name", rule: &types.Rule{Priority: 1, Action: 1, Table: 9, Iif: "a/b"}},
	} {
		req := &pb.Routes{}
		if c.route != nil {
			req.Routes = append(req.Routes, c.route)
		}
		if c.rule != nil {
			req.Rules = append(req.Rules, c.rule)
		}
		if _, err := n.UpdateRoutes(t.Context(), req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", req, err, c.want)
		}
	}
	if _, err := n.UpdateRoutes(t.Context(), &pb.Routes{Rules: make([]*types.Rule, maxRules+1)}); err == nil {
		t.Error("too many rules are taken")
	}
	if left := policyOf(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
