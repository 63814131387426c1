// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/netdump"
)

// Policy routing. Containers may have rules and tables of their own (a VPN in a side car), so a request removes only
// rules and routes that an earlier request added.

const maxRules = 1024

// rule is a checked rule of an UpdateRoutes request. Two that are equal are one to the kernel.
type rule struct {
	family     int
	priority   uint32
	src, dst   netip.Prefix
	iif, oif   string
	mark, mask uint32
	tos        uint8
	invert     bool
	action     uint8
	table      uint32
	suppress   uint32
}

// policy has the rules and routes that requests have added beyond the main table's unicast routes.
type policy struct {
	routes []route
	rules  []rule
}

// String is the rule as `ip rule` would begin it.
func (r rule) String() string {
	return fmt.Sprintf("%d: from %s lookup %d", r.priority, r.src, r.table)
}

// extra reports whether a route is not one of the main table's unicast routes.
func (r route) extra() bool { return r.table != 0 || r.kind != unix.RTN_UNICAST }

// parseKind reads table, type and metric of a route.
func (r *route) parseKind(m *types.Route) error {
	r.metric, r.table, r.kind = m.GetMetric(), m.GetTable(), unix.RTN_UNICAST
	switch r.table {
	case unix.RT_TABLE_MAIN:
		r.table = 0
	case unix.RT_TABLE_LOCAL:
		return invalid("route to %s: table %d holds the guest's own addresses", r.dst, r.table)
	}
	switch k := m.GetType(); k {
	case 0, unix.RTN_UNICAST:
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		if m.GetDevice() != "" || m.GetGateway() != "" {
			return invalid("route to %s: type %d has neither device nor gateway", r.dst, k)
		}
		r.kind = uint8(k) //nolint:gosec // one of the cases
	default:
		return invalid("route to %s: type %d; expected unicast (1), blackhole (6), unreachable (7), prohibit (8) or "+
			"throw (9)", r.dst, k)
	}
	return nil
}

func parseRules(list []*types.Rule) ([]rule, error) {
	if len(list) > maxRules {
		return nil, invalid("%d routing rules; expected at most %d", len(list), maxRules)
	}
	var out []rule
	for _, m := range list {
		r, err := parseRule(m)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRule(m *types.Rule) (rule, error) {
	r := rule{
		family: unix.AF_INET, priority: m.GetPriority(), iif: m.GetIif(), oif: m.GetOif(), mark: m.GetMark(),
		mask:   m.GetMask(),
		invert: m.GetInvert(), table: m.GetTable(), suppress: m.GetSuppress(),
	}
	if m.GetFamily() == types.IPFamily_v6 {
		r.family = unix.AF_INET6
	}
	switch {
	case r.priority == 0 || r.priority > math.MaxInt32:
		return rule{}, invalid("routing rule with priority %d; 0 is that of the guest's own addresses", r.priority)
	case r.table == unix.RT_TABLE_LOCAL || r.table > math.MaxInt32:
		return rule{}, invalid("routing rule %s: it looks up table %d", r, r.table)
	// the library sends it with small tables only
	case m.GetTos() > math.MaxUint8 || r.suppress > 129 || r.suppress != 0 && r.table > 255:
		return rule{}, invalid("routing rule %s: tos %d, prefixes suppressed up to %d", r, m.GetTos(), r.suppress)
	}
	r.tos = uint8(m.GetTos()) //nolint:gosec // checked above
	switch a := m.GetAction(); a {
	case unix.FR_ACT_TO_TBL, unix.FR_ACT_NOP, unix.FR_ACT_BLACKHOLE, unix.FR_ACT_UNREACHABLE, unix.FR_ACT_PROHIBIT:
		r.action = uint8(a)
	default:
		return rule{}, invalid("routing rule %s: action %d", r, a)
	}
	for _, name := range []string{r.iif, r.oif} {
		if name == "" || name == loopback {
			continue
		}
		if err := checkName(name); err != nil {
			return rule{}, fmt.Errorf("routing rule %s: %w", r, err)
		}
	}
	for _, p := range []struct {
		text string
		to   *netip.Prefix
	}{{m.GetSource(), &r.src}, {m.GetDest(), &r.dst}} {
		if p.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p.text)
		if err != nil || prefix.Addr().Is4() != (r.family == unix.AF_INET) || prefix.Addr().Is4In6() ||
			prefix.Addr().Zone() != "" {
			return rule{}, invalid("routing rule %s: prefix %q", r, p.text)
		}
		*p.to = prefix.Masked()
	}
	return r, nil
}

func (r rule) netlink() *netlink.Rule {
	out := netlink.NewRule()
	out.Family, out.Priority, out.Table, out.Mark = r.family, int(r.priority), int(r.table), r.mark
	out.Tos, out.Invert, out.Type, out.IifName, out.OifName = uint(r.tos), r.invert, r.action, r.iif, r.oif
	if r.mask != 0 {
		out.Mask = &r.mask
	}
	if r.src.IsValid() {
		out.Src = ipNet(r.src)
	}
	if r.dst.IsValid() {
		out.Dst = ipNet(r.dst)
	}
	if r.suppress != 0 {
		out.SuppressPrefixlen = int(r.suppress) - 1
	}
	return out
}

// dropRules takes away the rules of earlier requests that are not wanted any more.
func (n *Net) dropRules(want []rule) error {
	for _, r := range slices.Clone(n.policy.rules) {
		if slices.Contains(want, r) {
			continue
		}
		if err := n.nl.RuleDel(r.netlink()); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove routing rule %s: %w", r, err)
		}
		n.policy.rules = slices.DeleteFunc(n.policy.rules, func(o rule) bool { return o == r })
	}
	return nil
}

// addRules adds missing rules. It comes last: a rule may lead to a table that has to be filled first.
func (n *Net) addRules(want []rule) error {
	for _, r := range want {
		if slices.Contains(n.policy.rules, r) {
			continue
		}
		if err := n.nl.RuleAdd(r.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add routing rule %s: %w", r, err)
		}
		n.policy.rules = append(n.policy.rules, r)
	}
	return nil
}

// updateExtra makes the routes beyond the main table's unicast routes those of the request.
func (n *Net) updateExtra(ctx context.Context, want []route, index map[string]int) error {
	have, err := n.extras(ctx)
	if err != nil {
		return err
	}
	there := func(r route) bool { return slices.ContainsFunc(have, func(e entry) bool { return e.is(r) }) }
	for _, r := range n.policy.routes {
		if slices.Contains(want, r) || !there(r) {
			continue
		}
		if err := n.nl.RouteDel(ranked{route: r}.netlink(index[r.device])); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", r, err)
		}
	}
	n.policy.routes = want
	rank := map[string]int{}
	var add []ranked
	for _, r := range want {
		key := fmt.Sprint(r.table, r.dst)
		if !there(r) {
			add = append(add, ranked{r, rank[key]})
		}
		rank[key]++
	}
	slices.SortStableFunc(add, func(a, b ranked) int {
		return cmp.Or(later(a.gateway.IsValid())-later(b.gateway.IsValid()), b.dst.Bits()-a.dst.Bits())
	})
	for _, r := range add {
		if err := n.nl.RouteAdd(r.netlink(index[r.device])); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route %s: %w", r.route, err)
		}
	}
	return nil
}

// extras reads those routes, of all tables.
func (n *Net) extras(ctx context.Context) ([]entry, error) {
	names, err := n.names(ctx)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netdump.Read(ctx, "routes", func() ([]netlink.Route, error) {
			return n.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if r.Table == unix.RT_TABLE_LOCAL {
				continue
			}
			name := names[r.LinkIndex]
			if r.Type != unix.RTN_UNICAST {
				name = "" // for IPv6 the kernel names the loopback
			}
			if e := newEntry(r, family, name); e.extra() {
				out = append(out, e)
			}
		}
	}
	return out, nil
}
