// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/rtnl"
)

// Policy routing: the rules of a namespace decide which table answers, and routes can be refusals. The guest gets all
// of it, since a packet on a wrong route is worse than one that is not sent. Rules and routes that the guest cannot
// have are refused by name.

// Rule is a rule of policy routing.
type Rule struct {
	Family   int // unix.AF_INET or AF_INET6
	Priority uint32
	Src, Dst netip.Prefix // zero: any
	In, Out  string       // interface names, "": any
	Mark     uint32
	Mask     uint32
	TOS      uint8
	Invert   bool
	Action   uint8 // FR_ACT_*
	Table    uint32
	Suppress uint32 // longest prefix length that is suppressed, plus one; 0: none
	Odd      string // what it says beyond that, by the name of `ip rule`
}

// String is the rule as `ip rule` would begin it.
func (r Rule) String() string {
	s := fmt.Sprintf("%d: from ", r.Priority)
	if r.Src.IsValid() {
		s += r.Src.String()
	} else {
		s += "all"
	}
	if r.Dst.IsValid() {
		s += " to " + r.Dst.String()
	}
	if r.Table != 0 {
		s += fmt.Sprintf(" lookup %d", r.Table)
	}
	return s
}

const (
	sizeofRule = 12 // struct fib_rule_hdr (linux/fib_rules.h)
	ruleInvert = 2  // FIB_RULE_INVERT
	noSuppress = 1<<32 - 1
	// maxSuppressed is the last table with which the guest's library sends suppress_prefixlength.
	maxSuppressed = 255
	priorityMain  = 32766 // of the rule for the main table
)

// oddities are attributes that the guest does not get.
var oddities = map[uint16]string{
	unix.FRA_GOTO: "goto", unix.FRA_TUN_ID: "tun_id", unix.FRA_SUPPRESS_IFGROUP: "suppress_ifgroup",
	unix.FRA_L3MDEV: "l3mdev", unix.FRA_UID_RANGE: "uidrange",
	unix.FRA_IP_PROTO: "ipproto", unix.FRA_SPORT_RANGE: "sport", unix.FRA_DPORT_RANGE: "dport",
}

func parseRule(b []byte) (r Rule, ok bool) {
	if len(b) < sizeofRule {
		return r, false
	}
	r = Rule{Family: int(b[0]), TOS: b[3], Table: uint32(b[4]), Action: b[7], Invert: rtnl.U32(b[8:])&ruleInvert != 0}
	var src, dst netip.Addr
	for kind, v := range rtnl.Attrs(b[sizeofRule:]) {
		switch kind {
		case unix.FRA_SRC:
			src = addr(v)
		case unix.FRA_DST:
			dst = addr(v)
		case unix.FRA_IIFNAME:
			r.In = rtnl.Text(v)
		case unix.FRA_OIFNAME:
			r.Out = rtnl.Text(v)
		case unix.FRA_PRIORITY:
			r.Priority = rtnl.U32(v)
		case unix.FRA_FWMARK:
			r.Mark = rtnl.U32(v)
		case unix.FRA_FWMASK:
			r.Mask = rtnl.U32(v)
		case unix.FRA_TABLE:
			r.Table = rtnl.U32(v)
		case unix.FRA_SUPPRESS_PREFIXLEN:
			if n := rtnl.U32(v); n != noSuppress {
				r.Suppress = n + 1
			}
		default:
			if name := oddities[kind]; name != "" {
				r.Odd = name
			}
		}
	}
	if src.IsValid() {
		r.Src = netip.PrefixFrom(src, int(b[2]))
	}
	if dst.IsValid() {
		r.Dst = netip.PrefixFrom(dst, int(b[1]))
	}
	return r, true
}

// firstRules are those that every namespace begins with.
func firstRules() []Rule {
	var out []Rule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, d := range []struct{ priority, table uint32 }{{0, unix.RT_TABLE_LOCAL}, {priorityMain, unix.RT_TABLE_MAIN}} {
			out = append(out, Rule{Family: family, Priority: d.priority, Table: d.table, Action: unix.FR_ACT_TO_TBL})
		}
	}
	return append(out, Rule{
		Family: unix.AF_INET, Priority: priorityMain + 1, Table: unix.RT_TABLE_DEFAULT,
		Action: unix.FR_ACT_TO_TBL,
	})
}

// guestRules returns the rules that the guest has to get, and the refusals of those that it cannot have.
func guestRules(s Snapshot) (out []*types.Rule, refused []error) {
	first := firstRules()
	families := map[int]bool{}
	for _, r := range s.Rules {
		families[r.Family] = true
		if slices.Contains(first, r) {
			continue
		}
		why := ""
		switch {
		case r.Odd != "":
			why = "has " + r.Odd
		case r.Action == unix.FR_ACT_GOTO:
			why = "has goto"
		case r.Suppress != 0 && r.Table > maxSuppressed:
			why = fmt.Sprintf("has suppress_prefixlength with a table above %d", maxSuppressed)
		case r.Priority == 0:
			why = "comes before the guest's own addresses"
		case r.Table == unix.RT_TABLE_LOCAL:
			why = "looks up the table of local addresses"
		}
		if why != "" {
			refused = append(refused, fmt.Errorf("rule %s %s, which a guest is not told of: %w", r, why,
				errdefs.ErrNotImplemented))
			continue
		}
		out = append(out, r.message())
	}
	for _, r := range first[:4] { // nobody needs the empty table of the last one
		if families[r.Family] && !slices.Contains(s.Rules, r) {
			refused = append(refused, fmt.Errorf("rule %s is missing, with which a guest begins: %w", r,
				errdefs.ErrNotImplemented))
		}
	}
	return out, refused
}

func (r Rule) message() *types.Rule {
	m := &types.Rule{
		Family: types.IPFamily_v4, Priority: r.Priority, Iif: r.In, Oif: r.Out, Mark: r.Mark, Mask: r.Mask,
		Tos:    uint32(r.TOS),
		Invert: r.Invert, Action: uint32(r.Action), Table: r.Table, Suppress: r.Suppress,
	}
	if r.Family == unix.AF_INET6 {
		m.Family = types.IPFamily_v6
	}
	if r.Src.IsValid() {
		m.Source = r.Src.String()
	}
	if r.Dst.IsValid() {
		m.Dest = r.Dst.String()
	}
	return m
}

// refusal says whether a type of route is a refusal to send: the kernel has no device for it.
func refusal(kind uint8) bool {
	return kind == unix.RTN_BLACKHOLE || kind == unix.RTN_UNREACHABLE || kind == unix.RTN_PROHIBIT ||
		kind == unix.RTN_THROW
}

// Unroutable returns the refusals of the namespace's rules and routes that a guest cannot have, or nil.
func Unroutable(s Snapshot) error {
	_, refused := guestRules(s)
	for _, r := range s.Routes {
		if r.Type != unix.RTN_UNICAST && !refusal(r.Type) && r.Table != unix.RT_TABLE_LOCAL &&
			r.Proto != unix.RTPROT_KERNEL && !r.Dst.Addr().IsMulticast() {
			refused = append(refused, fmt.Errorf("route %s is of type %d, which a guest is not told of: %w", r, r.Type,
				errdefs.ErrNotImplemented))
		}
	}
	return errors.Join(refused...)
}

// NeedsRules says whether the configuration is more than the protocol's own messages can carry.
func (g Guest) NeedsRules() bool {
	return len(g.Rules) > 0 ||
		slices.ContainsFunc(g.Routes, func(r *types.Route) bool { return r.GetTable() != 0 || r.GetType() != 0 })
}
