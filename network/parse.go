// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
)

// The kernel's messages (linux/if_link.h, if_addr.h, rtnetlink.h, neighbour.h) as a Snapshot's parts. ok is
// false for a message that is shorter than its fixed part, or of no use.

const (
	kindTap     = "tuntap"
	addrGenNone = 1 // IN6_ADDR_GEN_MODE_NONE
)

// linkHeader is struct ifinfomsg; only flags named in change are changed.
func linkHeader(index int, flags, change uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg)                 // family, padding, type
	for _, v := range []uint32{uint32(index), flags, change} { //nolint:gosec // an index
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// parseLink also returns the index of the link below, 0 when there is none in this namespace.
func parseLink(b []byte) (l Link, lower int, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, 0, false
	}
	flags := rtnl.U32(b[8:])
	l = Link{
		Index: int(rtnl.U32(b[4:])), Kind: "device", Ethernet: binary.NativeEndian.Uint16(b[2:]) == unix.ARPHRD_ETHER,
		Loopback: flags&unix.IFF_LOOPBACK != 0, Up: flags&unix.IFF_UP != 0, NoARP: flags&unix.IFF_NOARP != 0,
	}
	elsewhere := false
	for kind, v := range rtnl.Attrs(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = rtnl.Text(v)
		case unix.IFLA_ADDRESS:
			if !bytes.Equal(v, make([]byte, len(v))) { // the loopback device says that it has zeros
				l.MAC = net.HardwareAddr(v).String()
			}
		case unix.IFLA_MTU:
			l.MTU = int(rtnl.U32(v))
		case unix.IFLA_MASTER:
			l.Master = int(rtnl.U32(v))
		case unix.IFLA_LINK:
			lower = int(rtnl.U32(v))
		case unix.IFLA_LINK_NETNSID: // there when the lower interface lies in another namespace
			elsewhere = int32(rtnl.U32(v)) != -1 //nolint:gosec // it has a sign
		case unix.IFLA_LINKINFO:
			for kind, v := range rtnl.Attrs(v) {
				if kind == unix.IFLA_INFO_KIND {
					l.Kind = rtnl.Text(v)
				}
			}
		}
	}
	if l.Kind == "tun" {
		l.Kind = kindTap
	}
	if elsewhere {
		lower = 0
	}
	return l, lower, true
}

func parseAddr(b []byte) (a Addr, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	a.Link = int(rtnl.U32(b[4:]))
	flags := uint32(b[2])
	var local, address netip.Addr
	for kind, v := range rtnl.Attrs(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			local = addr(v)
		case unix.IFA_ADDRESS:
			address = addr(v)
		case unix.IFA_FLAGS:
			flags = rtnl.U32(v)
		}
	}
	a.Permanent, a.DADFailed = flags&unix.IFA_F_PERMANENT != 0, flags&unix.IFA_F_DADFAILED != 0
	switch {
	case !local.IsValid() || local == address:
		a.Prefix = netip.PrefixFrom(address, int(b[1]))
	default: // address is the peer's, and so is the prefix length
		a.Prefix = netip.PrefixFrom(local, local.BitLen())
	}
	return a, a.Prefix.Addr().IsValid()
}

func parseRoute(b []byte) (r Route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	flags := rtnl.U32(b[8:])
	if flags&unix.RTM_F_CLONED != 0 {
		return r, false // an entry of the cache
	}
	r = Route{
		Table: int(b[4]), Proto: int(b[5]), Scope: b[6], Type: b[7], OnLink: flags&unix.RTNH_F_ONLINK != 0,
	}
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for kind, v := range rtnl.Attrs(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst = addr(v)
		case unix.RTA_GATEWAY:
			r.Gateway = addr(v)
		case unix.RTA_VIA:
			r.Gateway = via(v)
		case unix.RTA_PREFSRC:
			r.Source = addr(v)
		case unix.RTA_OIF:
			r.Link = int(rtnl.U32(v))
		case unix.RTA_PRIORITY:
			r.Metric = int(rtnl.U32(v))
		case unix.RTA_TABLE:
			r.Table = int(rtnl.U32(v))
		case unix.RTA_METRICS:
			for kind, v := range rtnl.Attrs(v) {
				if kind == unix.RTAX_MTU {
					r.MTU = int(rtnl.U32(v))
				}
			}
		case unix.RTA_MULTIPATH:
			r.Multi = parseHops(v)
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(b[1]))
	return r, dst.IsValid()
}

// parseHops reads the ways of a multipath route: struct rtnexthop each, with attributes.
func parseHops(b []byte) (hops []NextHop) {
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			return hops
		}
		h := NextHop{Link: int(rtnl.U32(b[4:])), OnLink: b[2]&unix.RTNH_F_ONLINK != 0}
		for kind, v := range rtnl.Attrs(b[unix.SizeofRtNexthop:length]) {
			switch kind {
			case unix.RTA_GATEWAY:
				h.Gateway = addr(v)
			case unix.RTA_VIA:
				h.Gateway = via(v)
			}
		}
		hops = append(hops, h)
		b = b[min(len(b), (length+unix.RTNH_ALIGNTO-1)&^(unix.RTNH_ALIGNTO-1)):]
	}
	return hops
}

// via reads struct rtvia: a gateway of another address family than the route's.
func via(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	return addr(b[2:])
}

func parseNeighbour(b []byte) (n Neighbour, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return n, false
	}
	n = Neighbour{
		Link: int(rtnl.U32(b[4:])), Permanent: binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0, Flags: int(b[10]),
	}
	for kind, v := range rtnl.Attrs(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.IP = addr(v)
		case unix.NDA_LLADDR:
			n.MAC = net.HardwareAddr(v).String()
		}
	}
	return n, n.IP.IsValid()
}

// addr is the zero Addr when b is no address.
func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
