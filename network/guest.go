// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent/types"
)

// Guest is the configuration that the agent gets, in the messages of its protocol: one
// UpdateInterface per interface, then one UpdateRoutes and one AddARPNeighbors, each only when there is
// something to send.
type Guest struct {
	Interfaces []*types.Interface
	Routes     []*types.Route
	Rules      []*types.Rule // with the routes
	Neighbours []*types.ARPNeighbor
}

// kinds are words for types of routes that have no device.
var kinds = map[uint32]string{
	unix.RTN_BLACKHOLE: "blackhole ", unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_PROHIBIT: "prohibit ",
	unix.RTN_THROW: "throw ",
}

// String is the configuration in one line, for logs.
func (g Guest) String() string {
	var parts []string
	for _, i := range g.Interfaces {
		s := fmt.Sprintf("%s %s mtu %d", i.GetName(), i.GetHwAddr(), i.GetMtu())
		for _, a := range i.GetIPAddresses() {
			s += " " + a.GetAddress() + "/" + a.GetMask()
		}
		parts = append(parts, s)
	}
	for _, r := range g.Routes {
		s := kinds[r.GetType()] + cmp.Or(r.GetDest(), "default")
		for _, w := range [][2]string{{"via", r.GetGateway()}, {"dev", r.GetDevice()}, {"src", r.GetSource()}} {
			if w[1] != "" {
				s += " " + w[0] + " " + w[1]
			}
		}
		if r.GetMtu() > 0 {
			s += fmt.Sprintf(" mtu %d", r.GetMtu())
		}
		if r.GetFlags()&unix.RTNH_F_ONLINK != 0 {
			s += " onlink"
		}
		for _, n := range []struct {
			word  string
			value uint32
		}{{"table", r.GetTable()}, {"metric", r.GetMetric()}} {
			if n.value != 0 {
				s += fmt.Sprintf(" %s %d", n.word, n.value)
			}
		}
		parts = append(parts, s)
	}
	for _, r := range g.Rules {
		parts = append(parts, fmt.Sprintf("rule %d from %s lookup %d", r.GetPriority(),
			cmp.Or(r.GetSource(), "all"), r.GetTable()))
	}
	for _, n := range g.Neighbours {
		parts = append(parts, n.GetToIPAddress().GetAddress()+" lladdr "+n.GetLladdr())
	}
	return strings.Join(parts, "; ")
}

// guestConfig returns the guest's configuration for the chosen links. The second result names the parts that the
// protocol cannot carry.
func guestConfig(s Snapshot, chosen []Link) (Guest, []Skipped) {
	var g Guest
	var skipped []Skipped
	names := map[int]string{}
	for _, l := range chosen {
		names[l.Index] = l.Name
		ifc := &types.Interface{Device: l.Name, Name: l.Name, HwAddr: l.MAC, Mtu: uint64(max(l.MTU, 0)), Type: l.Kind}
		if l.NoARP {
			ifc.RawFlags = unix.IFF_NOARP
		}
		for _, a := range s.Addrs {
			if a.Link != l.Index {
				continue
			}
			if why := unusableAddr(a); why != "" {
				skipped = append(skipped, Skipped{fmt.Sprintf("address %s of %s", a.Prefix, l.Name), why})
				continue
			}
			ifc.IPAddresses = append(ifc.IPAddresses, ipAddress(a.Prefix))
		}
		g.Interfaces = append(g.Interfaces, ifc)
	}
	for _, r := range s.Routes {
		msg, why := guestRoute(r, names)
		switch {
		case msg != nil:
			g.Routes = append(g.Routes, msg)
		case why != "":
			skipped = append(skipped, Skipped{"route " + r.String(), why})
		}
	}
	g.Rules, _ = guestRules(s)
	for _, n := range s.Neighbours {
		if name, ok := names[n.Link]; ok && n.Permanent && unicastMAC(n.MAC) {
			g.Neighbours = append(g.Neighbours, &types.ARPNeighbor{
				ToIPAddress: ipAddress(netip.PrefixFrom(n.IP, n.IP.BitLen())),
				Device:      name, Lladdr: n.MAC, State: unix.NUD_PERMANENT, Flags: int32(n.Flags), //nolint:gosec // one byte
			})
		}
	}
	return g, skipped
}

// unusableAddr says why the guest does not take an address over. Link-local IPv6 addresses are taken:
// the link may have one that does not follow from its MAC.
func unusableAddr(a Addr) string {
	ip := a.Prefix.Addr()
	switch {
	case a.DADFailed:
		return "another host on the network has it (duplicate address detection failed)"
	case ip.Is6() && !a.Permanent:
		return "was learnt from a router and has a lifetime; the guest learns its own"
	}
	return ""
}

func ipAddress(p netip.Prefix) *types.IPAddress {
	return &types.IPAddress{
		Family: family(p.Addr()), Address: p.Addr().WithZone("").String(),
		Mask: strconv.Itoa(p.Bits()),
	}
}

func family(ip netip.Addr) types.IPFamily {
	if ip.Is6() {
		return types.IPFamily_v6
	}
	return types.IPFamily_v4
}

// guestRoute turns a route into a message. Without a message and without a reason, the route does not
// concern the guest.
func guestRoute(r Route, names map[int]string) (msg *types.Route, why string) {
	if r.Table == unix.RT_TABLE_LOCAL || r.Dst.Addr().IsMulticast() {
		return nil, ""
	}
	for _, h := range r.Multi { // the first way that the guest has
		if _, ok := names[h.Link]; ok {
			r.Link, r.Gateway, r.OnLink = h.Link, h.Gateway, h.OnLink
			break
		}
	}
	dev, ok := names[r.Link]
	msg = &types.Route{
		Dest: dest(r.Dst), Gateway: text(r.Gateway), Device: dev, Source: text(r.Source), Scope: uint32(r.Scope),
		Family: family(r.Dst.Addr()),
		Flags:  flags(r), Mtu: uint32(max(r.MTU, 0)), Metric: uint32(max(r.Metric, 0)), //nolint:gosec // 32 bits in the kernel
	}
	if r.Table != unix.RT_TABLE_MAIN {
		msg.Table = uint32(max(r.Table, 0)) //nolint:gosec // likewise
	}
	switch {
	case refusal(r.Type):
		if r.Proto == unix.RTPROT_KERNEL {
			return nil, "" // the guest's kernel has its own
		}
		msg.Type, msg.Device, msg.Gateway, msg.Flags = uint32(r.Type), "", "", 0
		return msg, ""
	case !ok, r.Type != unix.RTN_UNICAST:
		return nil, ""
	case r.Dst.Addr().Is6() && r.Proto == unix.RTPROT_RA:
		return nil, "was learnt from a router; the guest learns its own"
	}
	return msg, ""
}

// dest is empty for a default route, as Kata's shims send it.
func dest(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return p.Masked().String()
}

func text(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.WithZone("").String()
}

func flags(r Route) uint32 {
	if r.OnLink {
		return unix.RTNH_F_ONLINK
	}
	return 0
}
