// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/netdump"
)

// Snapshot reads the namespace.
func (h *Handle) Snapshot(ctx context.Context) (Snapshot, error) {
	var s Snapshot
	links, err := netdump.Read(ctx, "links", h.nl.LinkList)
	if err != nil {
		return Snapshot{}, err
	}
	for _, l := range links {
		link := newLink(l, links)
		if link.Ingress, err = h.ingress(ctx, l); err != nil {
			return Snapshot{}, err
		}
		s.Links = append(s.Links, link)
	}
	addrs, err := netdump.Read(ctx, "addresses", func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Snapshot{}, err
	}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, newAddr(a))
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		routes, err := netdump.Read(ctx, "routes", func() ([]netlink.Route, error) {
			return h.nl.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return Snapshot{}, err
		}
		for _, r := range routes {
			s.Routes = append(s.Routes, newRoute(r, family))
		}
		neighbours, err := netdump.Read(ctx, "neighbours", func() ([]netlink.Neigh, error) { return h.nl.NeighList(0, family) })
		if err != nil {
			return Snapshot{}, err
		}
		for _, n := range neighbours {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				s.Neighbours = append(s.Neighbours, Neighbour{
					Link: n.LinkIndex, IP: ip.Unmap(), MAC: n.HardwareAddr.String(),
					Permanent: n.State&unix.NUD_PERMANENT != 0, Flags: n.Flags,
				})
			}
		}
	}
	return s, nil
}

func newLink(l netlink.Link, all []netlink.Link) Link {
	a := l.Attrs()
	link := Link{
		Index: a.Index, Name: a.Name, Kind: l.Type(), Ethernet: a.EncapType == "ether",
		Loopback: a.Flags&net.FlagLoopback != 0, Up: a.Flags&net.FlagUp != 0, NoARP: a.RawFlags&unix.IFF_NOARP != 0,
		MAC: a.HardwareAddr.String(), MTU: a.MTU, Master: a.MasterIndex,
	}
	// NetNsID is set when the lower interface lies in another namespace.
	if a.NetNsID == -1 && a.ParentIndex != a.Index {
		for _, o := range all {
			if o.Attrs().Index == a.ParentIndex {
				link.Lower = a.ParentIndex
			}
		}
	}
	return link
}

func newAddr(a netlink.Addr) Addr {
	ip, _ := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return Addr{
		Link: a.LinkIndex, Prefix: netip.PrefixFrom(ip.Unmap(), bits),
		Permanent: a.Flags&unix.IFA_F_PERMANENT != 0, DADFailed: a.Flags&unix.IFA_F_DADFAILED != 0,
	}
}

func newRoute(r netlink.Route, family int) Route {
	out := Route{
		Link: r.LinkIndex, Dst: prefix(r.Dst, family), Gateway: addr(r.Gw), Source: addr(r.Src),
		Scope: uint8(r.Scope), OnLink: r.Flags&unix.RTNH_F_ONLINK != 0, MTU: r.MTU, Metric: r.Priority, //nolint:gosec // one byte
		Table: r.Table, Type: uint8(r.Type), Proto: int(r.Protocol), //nolint:gosec // one byte
	}
	if v, ok := r.Via.(*netlink.Via); ok && !out.Gateway.IsValid() {
		out.Gateway = addr(v.Addr)
	}
	for _, n := range r.MultiPath {
		out.Multi = append(out.Multi, NextHop{Link: n.LinkIndex, Gateway: addr(n.Gw), OnLink: n.Flags&unix.RTNH_F_ONLINK != 0})
	}
	return out
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

// ingress looks at a link's ingress hook. Only an ingress qdisc whose every filter is of our
// priority is ours.
func (h *Handle) ingress(ctx context.Context, l netlink.Link) (Ingress, error) {
	name := l.Attrs().Name
	qdiscs, err := netdump.Read(ctx, "qdiscs of "+name, func() ([]netlink.Qdisc, error) { return h.nl.QdiscList(l) })
	if err != nil {
		return 0, err
	}
	for _, q := range qdiscs {
		switch q.Type() {
		case "clsact":
			return IngressForeign, nil
		case "ingress":
			filters, err := netdump.Read(ctx, "filters of "+name, func() ([]netlink.Filter, error) { return h.nl.FilterList(l, ingressParent) })
			if err != nil {
				return 0, err
			}
			for _, f := range filters {
				if f.Attrs().Priority != priority {
					return IngressForeign, nil
				}
			}
			return IngressOurs, nil
		}
	}
	return IngressFree, nil
}
