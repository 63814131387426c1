// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent/types"
)

// Bounds on one message of the host.
const (
	maxAddresses  = 256
	maxRoutes     = 4096
	maxNeighbours = 4096
	maxDNSLines   = 64
	maxDNSLine    = 1024
)

// Smallest and largest MTU that Linux takes for an Ethernet device with IPv4.
const (
	minMTU = 68
	maxMTU = 65535
)

// loopback is the guest's own; the host does not get to change it.
const loopback = "lo"

// iface is a checked UpdateInterface request.
type iface struct {
	name  string
	mac   net.HardwareAddr
	mtu   int // 0: leave
	noARP bool
	addrs []netip.Prefix
}

// linkLocal reports whether an IPv6 link-local address is among the addresses.
func (i iface) linkLocal() bool {
	for _, a := range i.addrs {
		if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

func parseInterface(m *types.Interface) (iface, error) {
	var out iface
	var err error
	out.name = m.GetName()
	if out.name == "" {
		out.name = m.GetDevice()
	}
	if err := checkName(out.name); err != nil {
		return iface{}, err
	}
	if out.mac, err = parseMAC(m.GetHwAddr()); err != nil {
		return iface{}, fmt.Errorf("interface %q: %w", out.name, err)
	}
	if mtu := m.GetMtu(); mtu != 0 {
		if mtu < minMTU || mtu > maxMTU {
			return iface{}, invalid("interface %q: mtu %d; expected 0 or %d to %d", out.name, mtu, minMTU, maxMTU)
		}
		out.mtu = int(mtu)
	}
	out.noARP = m.GetRawFlags()&unix.IFF_NOARP != 0
	if n := len(m.GetIPAddresses()); n > maxAddresses {
		return iface{}, invalid("interface %q: %d addresses; expected at most %d", out.name, n, maxAddresses)
	}
	for _, a := range m.GetIPAddresses() {
		p, err := parseAddress(a)
		if err != nil {
			return iface{}, fmt.Errorf("interface %q: %w", out.name, err)
		}
		out.addrs = append(out.addrs, p)
	}
	return out, nil
}

// checkName accepts the kernel's valid names of interfaces, except the loopback's and names with a meaning in
// paths.
func checkName(s string) error {
	switch {
	case s == "" || len(s) >= unix.IFNAMSIZ:
		return invalid("interface name %q; expected 1 to %d characters", s, unix.IFNAMSIZ-1)
	case s == loopback:
		return invalid("interface name %q is the guest's loopback", s)
	case s == "." || s == "..":
		return invalid("interface name %q", s)
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '/' || r == ':' || r == '%' {
			return invalid("interface name %q holds %q", s, r)
		}
	}
	return nil
}

func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, invalid("hardware address %q; expected one like 02:00:00:00:00:01", s)
	}
	return mac, nil
}

func parseAddress(m *types.IPAddress) (netip.Prefix, error) {
	ip, err := parseIP(m.GetAddress(), m.GetFamily())
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := strconv.Atoi(m.GetMask())
	if err != nil || bits < 0 || bits > ip.BitLen() {
		return netip.Prefix{}, invalid("address %s: prefix length %q; expected 0 to %d", ip, m.GetMask(), ip.BitLen())
	}
	if !usable(ip) {
		return netip.Prefix{}, invalid("address %s cannot be an interface's", ip)
	}
	return netip.PrefixFrom(ip, bits), nil
}

func usable(ip netip.Addr) bool {
	return !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLoopback() &&
		ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// parseIP wants the address to be of the stated family, without a zone.
func parseIP(s string, family types.IPFamily) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" || ip.Is4In6() {
		return netip.Addr{}, invalid("%q is not an IP address", s)
	}
	switch {
	case family == types.IPFamily_v4 && ip.Is4(), family == types.IPFamily_v6 && ip.Is6():
		return ip, nil
	}
	return netip.Addr{}, invalid("address %s is not of family %s", ip, family)
}

// route is a checked entry of an UpdateRoutes request.
type route struct {
	dst     netip.Prefix // masked
	gateway netip.Addr   // may be of the other family
	source  netip.Addr
	device  string
	scope   uint8
	onLink  bool
	mtu     int
	metric  uint32 // 0: by the order
	table   uint32 // 0: the main one
	kind    uint8  // RTN_*
}

// String is the route as `ip route` writes it.
func (r route) String() string {
	s := r.dst.String()
	if r.gateway.IsValid() {
		s += " via " + r.gateway.String()
	}
	if r.device != "" {
		s += " dev " + r.device
	}
	if r.table != 0 {
		s += fmt.Sprintf(" table %d", r.table)
	}
	return s
}

func parseRoute(m *types.Route) (route, error) {
	var out route
	var err error
	if out.dst, err = parseDest(m.GetDest(), m.GetFamily()); err != nil {
		return route{}, err
	}
	if err := out.parseKind(m); err != nil {
		return route{}, err
	}
	out.device = m.GetDevice()
	if err := checkName(out.device); err != nil && out.kind == unix.RTN_UNICAST {
		return route{}, fmt.Errorf("route to %s: %w", out.dst, err)
	}
	if s := m.GetGateway(); s != "" {
		gw, err := netip.ParseAddr(s)
		if err != nil || gw.Zone() != "" || gw.Is4In6() || !usable(gw) {
			return route{}, invalid("route to %s: gateway %q", out.dst, s)
		}
		if gw.Is4() && out.dst.Addr().Is6() {
			return route{}, invalid("route to %s: gateway %s is of another family", out.dst, gw)
		}
		out.gateway = gw
	}
	if s := m.GetSource(); s != "" {
		if out.source, err = parseIP(s, m.GetFamily()); err != nil {
			return route{}, fmt.Errorf("route to %s: source: %w", out.dst, err)
		}
		if !usable(out.source) {
			return route{}, invalid("route to %s: source %s", out.dst, out.source)
		}
	}
	if m.GetScope() > math.MaxUint8 {
		return route{}, invalid("route to %s: scope %d; expected 0 to 255", out.dst, m.GetScope())
	}
	out.scope = uint8(m.GetScope())                   //nolint:gosec // checked above
	out.onLink = m.GetFlags()&unix.RTNH_F_ONLINK != 0 // the others are states that the kernel reports
	if m.GetMtu() > maxMTU {
		return route{}, invalid("route to %s: mtu %d; expected at most %d", out.dst, m.GetMtu(), maxMTU)
	}
	out.mtu = int(m.GetMtu())
	return out, nil
}

// parseDest reads a destination: empty or "default" is the default route, an address alone is a host.
func parseDest(s string, family types.IPFamily) (netip.Prefix, error) {
	if family != types.IPFamily_v4 && family != types.IPFamily_v6 {
		return netip.Prefix{}, invalid("route to %q: family %d", s, family)
	}
	if s == "" || s == "default" {
		if family == types.IPFamily_v6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
	addr, bits, hasBits := strings.Cut(s, "/")
	ip, err := parseIP(addr, family)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("route to %q: %w", s, err)
	}
	n := ip.BitLen()
	if hasBits {
		if n, err = strconv.Atoi(bits); err != nil || n < 0 || n > ip.BitLen() {
			return netip.Prefix{}, invalid("route to %q: prefix length; expected 0 to %d", s, ip.BitLen())
		}
	}
	if ip.IsMulticast() || ip.IsLoopback() {
		return netip.Prefix{}, invalid("route to %q: not a unicast destination outside of the guest", s)
	}
	return netip.PrefixFrom(ip, n).Masked(), nil
}

// neighbour is a checked entry of an AddARPNeighbors request.
type neighbour struct {
	ip     netip.Addr
	device string
	mac    net.HardwareAddr
	state  int
	flags  int
}

func parseNeighbour(m *types.ARPNeighbor) (neighbour, error) {
	to := m.GetToIPAddress()
	ip, err := parseIP(to.GetAddress(), to.GetFamily())
	if err != nil {
		return neighbour{}, fmt.Errorf("neighbour: %w", err)
	}
	if !usable(ip) {
		return neighbour{}, invalid("neighbour %s: not a unicast address outside of the guest", ip)
	}
	out := neighbour{ip: ip, device: m.GetDevice(), state: int(m.GetState()), flags: int(m.GetFlags())}
	if err := checkName(out.device); err != nil {
		return neighbour{}, fmt.Errorf("neighbour %s: %w", ip, err)
	}
	if out.mac, err = parseMAC(m.GetLladdr()); err != nil {
		return neighbour{}, fmt.Errorf("neighbour %s: %w", ip, err)
	}
	switch out.state {
	case 0:
		out.state = unix.NUD_PERMANENT
	case unix.NUD_PERMANENT, unix.NUD_REACHABLE, unix.NUD_STALE, unix.NUD_NOARP:
	default:
		return neighbour{},
			invalid("neighbour %s: state %d; expected permanent (128), reachable (2), stale (4) or noarp (64)", ip, out.state)
	}
	if out.flags < 0 || out.flags > math.MaxUint8 {
		return neighbour{}, invalid("neighbour %s: flags %d; expected 0 to 255", ip, out.flags)
	}
	return out, nil
}

// parseDNS checks lines of a resolv.conf.
func parseDNS(lines []string) (string, error) {
	if len(lines) > maxDNSLines {
		return "", invalid("%d lines of resolv.conf; expected at most %d", len(lines), maxDNSLines)
	}
	var b strings.Builder
	for i, l := range lines {
		if len(l) > maxDNSLine {
			return "", invalid("line %d of resolv.conf has %d bytes; expected at most %d", i+1, len(l), maxDNSLine)
		}
		for _, r := range l {
			if r != '\t' && (r < ' ' || r == 0x7f) {
				return "", invalid("line %d of resolv.conf holds %q", i+1, r)
			}
		}
		b.WriteString(l)
		b.WriteByte('\n')
	}
	return b.String(), nil
}
