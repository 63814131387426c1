// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/netdump"
)

// entry is a route of the kernel's main table.
type entry struct {
	route
	proto int
	raw   netlink.Route
}

// ListRoutes lists the main table.
func (n *Net) ListRoutes(ctx context.Context) (*pb.Routes, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.listRoutes(ctx)
}

func (n *Net) listRoutes(ctx context.Context) (*pb.Routes, error) {
	have, err := n.table(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.Routes{}
	for _, e := range have {
		out.Routes = append(out.Routes, e.message())
	}
	return out, nil
}

// UpdateRoutes makes the main table's routes those of the request. An existing route of the request stays. A route that
// is not in the request is removed, except those that the kernel keeps for IPv6 (unless the request has another way to
// the same destination) and those learnt from routers. All routes are checked before the first change.
//
// Kata's protocol has no metrics: of several routes to one destination without one the first is preferred. Routes of
// other tables and types, and rules, are made in the same way, but only those of earlier requests go.
func (n *Net) UpdateRoutes(ctx context.Context, req *pb.Routes) (*pb.Routes, error) {
	if c := len(req.GetRoutes()); c > maxRoutes {
		return nil, invalid("%d routes; expected at most %d", c, maxRoutes)
	}
	rules, err := parseRules(req.GetRules())
	if err != nil {
		return nil, err
	}
	var want, extra []route
	for _, m := range req.GetRoutes() {
		r, err := parseRoute(m)
		if err != nil {
			return nil, err
		}
		if r.extra() {
			extra = append(extra, r)
		} else {
			want = append(want, r)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	index := map[string]int{}
	for _, r := range slices.Concat(want, extra) {
		if r.device == "" {
			continue
		}
		l, err := n.linkByName(r.device)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", r, err)
		}
		index[r.device] = l.Attrs().Index
	}
	if err := n.dropRules(rules); err != nil {
		return nil, err
	}
	have, err := n.table(ctx)
	if err != nil {
		return nil, err
	}
	drop, add := diff(have, want)
	for _, e := range drop {
		if err := n.nl.RouteDel(&e.raw); err != nil && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("remove route %s: %w", e.route, err)
		}
	}
	for _, r := range add {
		if err := n.nl.RouteAdd(r.netlink(index[r.device])); err != nil {
			return nil, fmt.Errorf("add route %s: %w", r.route, err)
		}
	}
	if err := n.updateExtra(ctx, extra, index); err != nil {
		return nil, err
	}
	if err := n.addRules(rules); err != nil {
		return nil, err
	}
	return n.listRoutes(ctx)
}

// ranked is a route and its place among those to the same destination, from 0.
type ranked struct {
	route
	rank int
}

// diff returns the routes to remove and to add, in a possible order: routes without a gateway first, because
// the gateways of the others are reached through them.
func diff(have []entry, want []route) (drop []entry, add []ranked) {
	kept := make([]bool, len(want))
	for _, e := range have {
		i := slices.IndexFunc(want, func(w route) bool { return e.is(w) })
		if i >= 0 && !kept[i] {
			kept[i] = true
			continue
		}
		if e.mayGo(want) {
			drop = append(drop, e)
		}
	}
	rank := map[netip.Prefix]int{}
	for i, w := range want {
		if !kept[i] {
			add = append(add, ranked{w, rank[w.dst]})
		}
		rank[w.dst]++
	}
	slices.SortStableFunc(add, func(a, b ranked) int {
		return cmp.Or(later(a.gateway.IsValid())-later(b.gateway.IsValid()), b.dst.Bits()-a.dst.Bits())
	})
	return drop, add
}

func later(b bool) int {
	if b {
		return 1
	}
	return 0
}

// is reports whether the kernel's route is the wanted one. Scope and source of IPv6 routes are not
// compared, since the kernel sets them by itself.
func (e entry) is(w route) bool {
	if e.dst != w.dst || e.gateway != w.gateway || e.device != w.device || e.mtu != w.mtu || e.onLink != w.onLink ||
		e.table != w.table || e.kind != w.kind || w.metric != 0 && e.metric != w.metric {
		return false
	}
	if w.dst.Addr().Is6() {
		return !w.source.IsValid() || e.source == w.source
	}
	return e.source == w.source && e.scope == w.scope
}

func (e entry) mayGo(want []route) bool {
	switch {
	case e.dst.Addr().Is4():
		return true
	case e.proto == unix.RTPROT_RA:
		return false
	case e.proto == unix.RTPROT_KERNEL:
		return slices.ContainsFunc(want, func(w route) bool { return w.dst == e.dst && w.device == e.device })
	}
	return true
}

// defaultMetric6 is the kernel's metric of an IPv6 route without one (IP6_RT_PRIO_USER).
const defaultMetric6 = 1024

func (r ranked) netlink(index int) *netlink.Route {
	out := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.dst), Scope: netlink.Scope(r.scope), MTU: r.mtu,
		Protocol: unix.RTPROT_STATIC, Priority: r.rank,
	}
	if r.dst.Addr().Is6() {
		out.Scope, out.Priority = netlink.SCOPE_UNIVERSE, defaultMetric6+r.rank
	}
	if r.metric != 0 {
		out.Priority = int(r.metric)
	}
	out.Table, out.Type = int(r.table), int(r.kind)
	if r.source.IsValid() {
		out.Src = r.source.AsSlice()
	}
	switch {
	case !r.gateway.IsValid():
	case r.gateway.Is6() == r.dst.Addr().Is6():
		out.Gw = r.gateway.AsSlice()
	default:
		out.Via = &netlink.Via{AddrFamily: netlink.FAMILY_V6, Addr: r.gateway.AsSlice()}
	}
	if r.onLink {
		out.Flags = unix.RTNH_F_ONLINK
	}
	return out
}

// table reads the unicast routes of the main table.
func (n *Net) table(ctx context.Context) ([]entry, error) {
	names, err := n.names(ctx)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netdump.Read(ctx, "routes", func() ([]netlink.Route, error) { return n.nl.RouteList(nil, family) })
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if name, ok := names[r.LinkIndex]; ok && name != loopback && r.Type == unix.RTN_UNICAST {
				out = append(out, newEntry(r, family, name))
			}
		}
	}
	return out, nil
}

// names are the links' by their numbers.
func (n *Net) names(ctx context.Context) (map[int]string, error) {
	links, err := n.links(ctx)
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func newEntry(r netlink.Route, family int, device string) entry {
	e := entry{proto: int(r.Protocol), raw: r}
	e.route = route{
		dst: prefix(r.Dst, family), gateway: addr(r.Gw), source: addr(r.Src), device: device,
		scope: uint8(r.Scope), onLink: r.Flags&unix.RTNH_F_ONLINK != 0, mtu: r.MTU,
		metric: uint32(r.Priority), kind: uint8(r.Type), //nolint:gosec // likewise, and 32 bits
	}
	if r.Table != unix.RT_TABLE_MAIN {
		e.table = uint32(r.Table) //nolint:gosec // 32 bits
	}
	if v, ok := r.Via.(*netlink.Via); ok && !e.gateway.IsValid() {
		e.gateway = addr(v.Addr)
	}
	return e
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet, family int) netip.Prefix {
	if n == nil || n.IP == nil {
		if family == netlink.FAMILY_V6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if family == netlink.FAMILY_V4 {
		ip = ip.Unmap()
	}
	return netip.PrefixFrom(ip, bits)
}

func (r route) message() *types.Route {
	m := &types.Route{Device: r.device, Scope: uint32(r.scope), Family: family(r.dst.Addr()), Mtu: uint32(max(r.mtu, 0))} //nolint:gosec // an mtu
	if r.dst.Bits() > 0 {
		m.Dest = r.dst.String()
	}
	if r.gateway.IsValid() {
		m.Gateway = r.gateway.String()
	}
	if r.source.IsValid() {
		m.Source = r.source.String()
	}
	if r.onLink {
		m.Flags = unix.RTNH_F_ONLINK
	}
	return m
}
