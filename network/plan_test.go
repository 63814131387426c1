// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/worktest"
)

var (
	lo   = Link{Index: 1, Name: "lo", Kind: "device", Loopback: true, Up: true, MTU: 65536}
	eth0 = Link{Index: 2, Name: "eth0", Kind: "veth", Ethernet: true, Up: true, MAC: "02:00:00:00:00:01", MTU: 1450}
	net1 = Link{Index: 3, Name: "net1", Kind: "macvlan", Ethernet: true, Up: true, MAC: "02:00:00:00:00:02", MTU: 9000}
)

func with(l Link, change func(*Link)) Link {
	change(&l)
	return l
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func mainRoute(link int, dst, gw string) Route {
	r := Route{Link: link, Dst: pfx(dst), Table: 254, Type: 1}
	if gw != "" {
		r.Gateway = ip(gw)
	}
	return r
}

// cni is what the bridge plugin leaves, in two families, and what the kernel adds.
func cni() Snapshot {
	kernel := Route{Link: 2, Dst: pfx("10.1.0.0/24"), Source: ip("10.1.0.2"), Scope: 253, Table: 254, Type: 1, Proto: 2}
	local := Route{Link: 2, Dst: pfx("10.1.0.2/32"), Table: 255, Type: 2, Proto: 2, Scope: 254}
	mcast := Route{Link: 2, Dst: pfx("ff00::/8"), Table: 255, Type: 5}
	return Snapshot{
		Links: []Link{lo, eth0},
		Addrs: []Addr{
			{Link: 1, Prefix: pfx("127.0.0.1/8"), Permanent: true},
			{Link: 2, Prefix: pfx("10.1.0.2/24"), Permanent: true},
			{Link: 2, Prefix: pfx("fd00::2/64"), Permanent: true},
			{Link: 2, Prefix: pfx("fe80::ff:fe00:1/64"), Permanent: true},
		},
		Routes: []Route{
			mainRoute(2, "0.0.0.0/0", "10.1.0.1"), kernel, local,
			mainRoute(2, "fd00::/64", ""), mainRoute(2, "::/0", "fe80::1"), mcast,
		},
		Neighbours: []Neighbour{
			{Link: 2, IP: ip("10.1.0.1"), MAC: "02:00:00:00:00:fe", Permanent: true},
			{Link: 2, IP: ip("10.1.0.9"), MAC: "02:00:00:00:00:09"},
			{Link: 2, IP: ip("fd00::1"), MAC: "02:00:00:00:00:fe", Permanent: true, Flags: 0x80},
			{Link: 2, IP: ip("fd00::7"), MAC: "", Permanent: true},
		},
	}
}

func TestPlanOfACNINamespace(t *testing.T) {
	got, err := Plan(cni(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := Wiring{
		Redirects: []Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 1}},
		Guest: Guest{
			Interfaces: []*types.Interface{{
				Device: "eth0", Name: "eth0", HwAddr: eth0.MAC, Mtu: 1450, Type: "veth",
				IPAddresses: []*types.IPAddress{
					{Family: types.IPFamily_v4, Address: "10.1.0.2", Mask: "24"},
					{Family: types.IPFamily_v6, Address: "fd00::2", Mask: "64"},
					{Family: types.IPFamily_v6, Address: "fe80::ff:fe00:1", Mask: "64"},
				},
			}},
			Routes: []*types.Route{
				{Gateway: "10.1.0.1", Device: "eth0"},
				{Dest: "10.1.0.0/24", Device: "eth0", Source: "10.1.0.2", Scope: 253},
				{Dest: "fd00::/64", Device: "eth0", Family: types.IPFamily_v6},
				{Gateway: "fe80::1", Device: "eth0", Family: types.IPFamily_v6},
			},
			Neighbours: []*types.ARPNeighbor{
				{
					ToIPAddress: &types.IPAddress{Address: "10.1.0.1", Mask: "32"}, Device: "eth0",
					Lladdr: "02:00:00:00:00:fe", State: 128,
				},
				{
					ToIPAddress: &types.IPAddress{Family: types.IPFamily_v6, Address: "fd00::1", Mask: "128"}, Device: "eth0",
					Lladdr: "02:00:00:00:00:fe", State: 128, Flags: 128,
				},
			},
		},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("Plan (-want +got):\n%s", d)
	}
}

func TestPlanOfLinks(t *testing.T) {
	given := func(link int) []Addr { return []Addr{{Link: link, Prefix: pfx("10.9.0.2/24"), Permanent: true}} }
	tests := []struct {
		name    string
		links   []Link
		addrs   []Addr
		o       Options
		want    []Redirect
		skipped []string
		err     []string
	}{
		{name: "an empty namespace needs nothing", links: []Link{lo}},
		{name: "no links at all"},
		{
			name: "several interfaces and queues", links: []Link{lo, eth0, net1}, o: Options{Queues: 4},
			want: []Redirect{
				{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 4},
				{Link: "net1", Index: 3, Tap: "coco1_net1", MAC: net1.MAC, MTU: 9000, Queues: 4},
			},
		},
		{name: "model none", links: []Link{lo, eth0}, o: Options{Model: ModelNone}},
		{name: "unknown model", o: Options{Model: "macvtap"}, err: []string{
			`network model "macvtap"`,
			`expected "tcfilter" or "none"`,
		}},
		{
			name: "what the pod does not need is skipped with a reason",
			links: []Link{
				lo, eth0,
				{Index: 4, Name: "tunl0", Kind: "ipip"},
				{Index: 5, Name: "wg0", Kind: "wireguard", Up: true},
				with(net1, func(l *Link) { l.Master = 7 }),
				{Index: 7, Name: "br0", Kind: "bridge", Ethernet: true, MAC: "02:00:00:00:00:07"},
				{Index: 9, Name: "eth0.7", Kind: "vlan", Ethernet: true, Up: true, MAC: "02:00:00:00:00:01", Lower: 2},
				{Index: 10, Name: "odd", Kind: "dummy", Ethernet: true, Up: true, MAC: "03:00:00:00:00:01"},
			},
			want: []Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 1}},
			skipped: []string{
				"link tunl0: is down",
				"link wg0: does not carry Ethernet frames, which a tap needs",
				"link net1: is a port of br0",
				"link br0: is down",
				"link eth0.7: lies above eth0, whose frames the guest gets whole",
				`link odd: has no usable MAC address ("03:00:00:00:00:01")`,
			},
		},
		{
			name: "what the pod needs and cannot have is refused, all at once",
			links: []Link{
				{Index: 5, Name: "tun0", Kind: "tuntap", Up: true},
				with(net1, func(l *Link) { l.Ingress = IngressForeign }),
				{Index: 6, Name: "mac0", Kind: "dummy", Ethernet: true, Up: true, MAC: "00:00:00:00:00:00"},
			},
			addrs: append(given(5), given(6)...),
			err: []string{
				"link tun0 (tuntap) does not carry Ethernet frames",
				"link net1 (macvlan) has an ingress qdisc of somebody else's",
				"link mac0 (dummy) has no usable MAC address",
			},
		},
		{
			name: "two links of one MAC", links: []Link{eth0, with(net1, func(l *Link) { l.MAC = eth0.MAC })},
			err: []string{"link net1 (macvlan) has the same MAC 02:00:00:00:00:01 as eth0"},
		},
		{
			name:  "a vlan with addresses above a link of the guest's",
			links: []Link{eth0, {Index: 9, Name: "v", Kind: "vlan", Ethernet: true, Up: true, MAC: net1.MAC, Lower: 2}},
			addrs: given(9), err: []string{"link v (vlan) lies above eth0"},
		},
		{
			name: "both ends of a veth in one namespace", links: []Link{with(eth0, func(l *Link) { l.Lower = 3 })},
			want: []Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 1}},
		},
		{
			name: "a redirect of an earlier VM goes first", links: []Link{with(eth0, func(l *Link) { l.Ingress = IngressOurs })},
			want: []Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 1, Stale: true}},
		},
		{
			name: "long names are cut", links: []Link{with(eth0, func(l *Link) { l.Name = "fifteen-letters" })},
			want: []Redirect{{Link: "fifteen-letters", Index: 2, Tap: "coco0_fifteen-l", MAC: eth0.MAC, MTU: 1450, Queues: 1}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Plan(Snapshot{Links: tt.links, Addrs: tt.addrs}, tt.o)
			if tt.err != nil {
				if err == nil {
					t.Fatalf("Plan = %+v, want an error", got)
				}
				for _, want := range tt.err {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("Plan error = %v\nwant %s", err, want)
					}
				}
				if !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
					t.Errorf("error has no class: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got.Redirects); d != "" {
				t.Errorf("redirects (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.skipped, words(got.Skipped)); d != "" {
				t.Errorf("skipped (-want +got):\n%s", d)
			}
		})
	}
}

func words(list []Skipped) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.What+": "+s.Why)
	}
	return out
}

func TestPlanOfAddressesAndRoutes(t *testing.T) {
	s := Snapshot{
		Links: []Link{lo, with(eth0, func(l *Link) { l.NoARP = true }), {Index: 9, Name: "tunl0", Kind: "ipip"}},
		Addrs: []Addr{
			{Link: 2, Prefix: pfx("169.254.7.7/32"), Permanent: true},
			{Link: 2, Prefix: pfx("10.0.0.9/24")},    // leased
			{Link: 2, Prefix: pfx("2001:db8::9/64")}, // learnt
			{Link: 2, Prefix: pfx("fd00::3/64"), Permanent: true, DADFailed: true},
		},
		Routes: []Route{
			{Link: 2, Dst: pfx("169.254.1.1/32"), Scope: 253, Table: 254, Type: 1},
			{
				Link: 2, Dst: pfx("0.0.0.0/0"), Gateway: ip("169.254.1.1"), OnLink: true, MTU: 1400, Source: ip("169.254.7.7"),
				Table: 254, Type: 1,
			},
			{Dst: pfx("10.5.0.0/16"), Table: 254, Type: 1, Multi: []NextHop{
				{Link: 9, Gateway: ip("1.1.1.1")},
				{Link: 2, Gateway: ip("169.254.1.1"), OnLink: true},
			}},
			{Dst: pfx("10.6.0.0/16"), Table: 254, Type: 6},                      // blackhole
			{Link: 2, Dst: pfx("10.7.0.0/16"), Table: 100, Type: 1, Metric: 50}, // policy routing
			{Link: 2, Dst: pfx("::/0"), Gateway: ip("fe80::1"), Proto: 9, Table: 254, Type: 1},
			{Link: 9, Dst: pfx("10.8.0.0/16"), Table: 254, Type: 1}, // not the guest's
			{Link: 1, Dst: pfx("127.0.0.0/8"), Table: 255, Type: 2},
		},
	}
	got, err := Plan(s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantRoutes := []*types.Route{
		{Dest: "169.254.1.1/32", Device: "eth0", Scope: 253},
		{Gateway: "169.254.1.1", Device: "eth0", Source: "169.254.7.7", Flags: 4, Mtu: 1400},
		{Dest: "10.5.0.0/16", Gateway: "169.254.1.1", Device: "eth0", Flags: 4},
		{Dest: "10.6.0.0/16", Type: 6},
		{Dest: "10.7.0.0/16", Device: "eth0", Table: 100, Metric: 50},
	}
	if d := cmp.Diff(wantRoutes, got.Guest.Routes, protocmp.Transform()); d != "" {
		t.Errorf("routes (-want +got):\n%s", d)
	}
	wantIfc := []*types.Interface{{
		Device: "eth0", Name: "eth0", HwAddr: eth0.MAC, Mtu: 1450, Type: "veth", RawFlags: 0x80,
		IPAddresses: []*types.IPAddress{{Address: "169.254.7.7", Mask: "32"}, {Address: "10.0.0.9", Mask: "24"}},
	}}
	if d := cmp.Diff(wantIfc, got.Guest.Interfaces, protocmp.Transform()); d != "" {
		t.Errorf("interfaces (-want +got):\n%s", d)
	}
	want := []string{
		"link tunl0: is down",
		"address 2001:db8::9/64 of eth0: was learnt from a router and has a lifetime; the guest learns its own",
		"address fd00::3/64 of eth0: another host on the network has it (duplicate address detection failed)",
		"route ::/0 via fe80::1: was learnt from a router; the guest learns its own",
	}
	if d := cmp.Diff(want, words(got.Skipped)); d != "" {
		t.Errorf("skipped (-want +got):\n%s", d)
	}
}

func TestWiringSurvivesTheJournal(t *testing.T) {
	w, err := Plan(cni(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var got Wiring
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w.Redirects, got.Redirects); d != "" {
		t.Errorf("redirects after JSON (-want +got):\n%s", d)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add("eth0", "02:00:00:00:00:01", "10.0.0.1/8", "fe80::1%eth0", 1500, byte(7))
	f.Fuzz(func(t *testing.T, name, mac, prefix, gateway string, mtu int, bits byte) {
		defer worktest.Bound(t, len(name)+len(mac)+len(prefix)+len(gateway))()
		p, _ := netip.ParsePrefix(prefix)
		gw, _ := netip.ParseAddr(gateway)
		s := Snapshot{
			Links: []Link{
				{
					Index: 1, Name: name, MAC: mac, MTU: mtu, Up: bits&1 != 0, Ethernet: bits&2 != 0, Kind: "veth",
					Ingress: Ingress(bits >> 6),
				},
				{Index: 2, Name: "b", MAC: "02:00:00:00:00:0b", Up: true, Ethernet: true, Lower: int(bits & 1)},
			},
			Addrs: []Addr{{Link: 1, Prefix: p, Permanent: bits&4 != 0}},
			Routes: []Route{
				{Link: 1, Dst: p, Gateway: gw, Table: 254, Type: bits & 3, MTU: mtu},
				{Dst: p, Multi: []NextHop{{Link: 2, Gateway: gw}}},
			},
			Neighbours: []Neighbour{{Link: 1, IP: gw, MAC: mac, Permanent: true}},
		}
		w, err := Plan(s, Options{Queues: mtu % 8})
		if err != nil {
			return
		}
		for _, r := range w.Redirects {
			if len(r.Tap) > maxName || r.Queues < 1 || !unicastMAC(r.MAC) {
				t.Errorf("Plan = %+v", r)
			}
		}
	})
}

// A VM that got its interface while it ran has a tap of another name than one from the boot, and the link's redirect is
// "ours": a second VM took it for the rest of an earlier one and the first was cut off.
func TestANamespaceOfARunningVMIsLeftAlone(t *testing.T) {
	for _, tap := range []string{"coco0_eth0", "coco0_late", "coco3_net1"} {
		links := []Link{
			lo, with(eth0, func(l *Link) { l.Ingress = IngressOurs }),
			{Index: 9, Name: tap, Kind: "tuntap", Ethernet: true, Up: true},
		}
		w, err := Plan(Snapshot{Links: links}, Options{})
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), tap) || len(w.Redirects) > 0 {
			t.Errorf("tap %s: %v, %v; want a refusal that names it", tap, w, err)
		}
	}
}
