// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestHostileInterfaces(t *testing.T) {
	with := func(change func(*types.Interface)) *types.Interface {
		m := eth0()
		change(m)
		return m
	}
	addr := func(a *types.IPAddress) *types.Interface {
		return with(func(m *types.Interface) { m.IPAddresses = []*types.IPAddress{a} })
	}
	tests := []struct {
		name string
		in   *types.Interface
		want string
	}{
		{"nothing", nil, `interface name ""`},
		{"loopback", with(func(m *types.Interface) { m.Name = "lo" }), "is the guest's loopback"},
		{"path", with(func(m *types.Interface) { m.Name = "../eth0" }), `holds '/'`},
		{"dots", with(func(m *types.Interface) { m.Name = ".." }), `".."`},
		{"pattern", with(func(m *types.Interface) { m.Name = "eth%d" }), `holds '%'`},
		{"long name", with(func(m *types.Interface) { m.Name = strings.Repeat("e", 16) }), "expected 1 to 15"},
		{"no hardware address", with(func(m *types.Interface) { m.HwAddr = "" }), "hardware address"},
		{"infiniband", with(func(m *types.Interface) { m.HwAddr = "02:00:00:00:00:00:00:01" }), "hardware address"},
		{"mtu", with(func(m *types.Interface) { m.Mtu = 1 << 40 }), "mtu 1099511627776; expected 0 or 68 to 65535"},
		{"many addresses", with(func(m *types.Interface) { m.IPAddresses = make([]*types.IPAddress, 257) }), "257 addresses"},
		{"nil address", addr(nil), `"" is not an IP address`},
		{"family", addr(&types.IPAddress{Family: types.IPFamily_v6, Address: "10.0.0.1", Mask: "24"}), "not of family v6"},
		{"unknown family", addr(&types.IPAddress{Family: 7, Address: "10.0.0.1", Mask: "24"}), "not of family 7"},
		{"zone", addr(ip6("fe80::1%eth0", "64")), "not an IP address"},
		{"mapped", addr(ip6("::ffff:10.0.0.1", "128")), "not an IP address"},
		{"mask", addr(ip4("10.0.0.1", "33")), "prefix length \"33\"; expected 0 to 32"},
		{"dotted mask", addr(ip4("10.0.0.1", "255.0.0.0")), "prefix length"},
		{"multicast", addr(ip4("224.0.0.1", "24")), "cannot be an interface's"},
		{"loopback address", addr(ip6("::1", "128")), "cannot be an interface's"},
		{"unspecified", addr(ip4("0.0.0.0", "0")), "cannot be an interface's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseInterface(tt.in)
			check(t, got, err, tt.want)
		})
	}
}

func check(t *testing.T, got any, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
		t.Errorf("= %+v, %v, want errdefs.ErrInvalidArgument with %q", got, err, want)
	}
}

func TestHostileRoutes(t *testing.T) {
	tests := []struct {
		name string
		in   *types.Route
		want string
	}{
		{"nothing", nil, "interface name"},
		{"loopback", &types.Route{Device: "lo"}, "loopback"},
		{"destination", &types.Route{Device: "eth0", Dest: "10.0.0.0/33"}, "prefix length"},
		{"destination text", &types.Route{Device: "eth0", Dest: "any"}, `"any" is not an IP address`},
		{"multicast", &types.Route{Device: "eth0", Dest: "224.0.0.0/4"}, "not a unicast destination"},
		{"into the guest", &types.Route{Device: "eth0", Dest: "127.0.0.0/8"}, "not a unicast destination"},
		{"family", &types.Route{Device: "eth0", Family: 9}, "family 9"},
		{"gateway", &types.Route{Device: "eth0", Gateway: "gw"}, "gateway \"gw\""},
		{"gateway family", &types.Route{Device: "eth0", Gateway: "10.0.0.1", Family: types.IPFamily_v6}, "another family"},
		{"source", &types.Route{Device: "eth0", Source: "fd00::1"}, "not of family v4"},
		{"loopback source", &types.Route{Device: "eth0", Source: "127.0.0.1"}, "source 127.0.0.1"},
		{"scope", &types.Route{Device: "eth0", Scope: 256}, "scope 256"},
		{"mtu", &types.Route{Device: "eth0", Mtu: 1 << 31}, "mtu 2147483648"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseRoute(tt.in)
			check(t, got, err, tt.want)
		})
	}
}

func TestHostileNeighbours(t *testing.T) {
	with := func(change func(*types.ARPNeighbor)) *types.ARPNeighbor {
		m := &types.ARPNeighbor{ToIPAddress: ip4("10.0.0.1", "32"), Device: "eth0", Lladdr: macA}
		change(m)
		return m
	}
	tests := []struct {
		name string
		in   *types.ARPNeighbor
		want string
	}{
		{"nothing", nil, "not an IP address"},
		{"loopback address", with(func(m *types.ARPNeighbor) { m.ToIPAddress.Address = "127.0.0.1" }), "neighbour 127.0.0.1"},
		{"loopback", with(func(m *types.ARPNeighbor) { m.Device = "lo" }), "loopback"},
		{"hardware address", with(func(m *types.ARPNeighbor) { m.Lladdr = "x" }), "hardware address"},
		{"state", with(func(m *types.ARPNeighbor) { m.State = -1 }), "state -1"},
		{"flags", with(func(m *types.ARPNeighbor) { m.Flags = 256 }), "flags 256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseNeighbour(tt.in)
			check(t, got, err, tt.want)
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("eth0", "02:00:00:00:00:01", "10.0.0.1", "24", uint64(1500), int32(0))
	f.Add("eth0", "02-00-00-00-00-01", "fe80::1", "64", uint64(0), int32(1))
	f.Fuzz(func(t *testing.T, name, mac, ip, mask string, n uint64, k int32) {
		defer worktest.Bound(t, len(name)+len(mac)+len(ip)+len(mask))()
		a := &types.IPAddress{Family: types.IPFamily(k), Address: ip, Mask: mask}
		if i, err := parseInterface(&types.Interface{
			Name: name, HwAddr: mac, Mtu: n, RawFlags: uint32(n),
			IPAddresses: []*types.IPAddress{a},
		}); err == nil {
			if i.name == loopback || len(i.name) > 15 || len(i.mac) != 6 || i.mtu > maxMTU || !i.addrs[0].IsValid() {
				t.Errorf("parseInterface = %+v", i)
			}
		}
		if r, err := parseRoute(&types.Route{
			Dest: ip + "/" + mask, Gateway: ip, Source: ip, Device: name, Scope: uint32(n),
			Mtu: uint32(n), Flags: uint32(k), Family: types.IPFamily(k),
		}); err == nil {
			if !r.dst.IsValid() || r.dst != r.dst.Masked() || r.mtu > maxMTU {
				t.Errorf("parseRoute = %+v", r)
			}
			again, err := parseRoute(r.message())
			if err != nil || again != r {
				t.Errorf("parseRoute(message of %+v) = %+v, %v", r, again, err)
			}
			diff([]entry{{route: r, proto: int(k)}}, []route{r, r})
			ranked{r, 1}.netlink(1)
		}
		if b, err := parseNeighbour(&types.ARPNeighbor{
			ToIPAddress: a, Device: name, Lladdr: mac, State: k,
			Flags: k,
		}); err == nil && !usable(b.ip) {
			t.Errorf("parseNeighbour = %+v", b)
		}
		if s, err := parseDNS([]string{name, ip}); err == nil && strings.Count(s, "\n") != 2 {
			t.Errorf("parseDNS = %q", s)
		}
	})
}
