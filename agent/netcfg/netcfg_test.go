// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/testvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	macA = "02:00:00:00:00:0a"
	macB = "02:00:00:00:00:0b"
)

// newNet makes a namespace of the test's own and opens it as the guest's network.
func newNet(t *testing.T, o Options) *Net {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns)
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		ns, err := netns.Get()
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	n, err := newAt(r.ns, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		if err := r.ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// addLink adds a link with a peer that is up, so that it has a carrier.
func addLink(t *testing.T, n *Net, name, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}, PeerName: "p" + name}
	if err := n.nl.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	peer, err := n.nl.LinkByName("p" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.nl.LinkSetUp(peer); err != nil {
		t.Fatal(err)
	}
}

func ip4(a, mask string) *types.IPAddress { return &types.IPAddress{Address: a, Mask: mask} }
func ip6(a, mask string) *types.IPAddress {
	return &types.IPAddress{Family: types.IPFamily_v6, Address: a, Mask: mask}
}

func eth0() *types.Interface {
	return &types.Interface{
		Device: "eth0", Name: "eth0", HwAddr: macA, Mtu: 1400, Type: "veth",
		IPAddresses: []*types.IPAddress{ip4("10.1.0.2", "24"), ip6("fd00::2", "64"), ip6("fe80::a", "64")},
	}
}

func update(t *testing.T, n *Net, m *types.Interface) *types.Interface {
	t.Helper()
	got, err := n.UpdateInterface(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestUpdateInterface(t *testing.T) {
	n := newNet(t, Options{})
	addLink(t, n, "ens3", macA)
	for _, what := range []string{"first", "repeated"} {
		if d := cmp.Diff(eth0(), update(t, n, eth0()), protocmp.Transform()); d != "" {
			t.Errorf("%s: UpdateInterface (-want +got):\n%s", what, d)
		}
	}
	l, err := n.nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := n.nl.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%s is tentative: the pod could not use it yet", a.IPNet)
		}
	}
	m := eth0()
	m.IPAddresses, m.Mtu, m.RawFlags = []*types.IPAddress{ip4("10.1.0.3", "24"), ip6("fe80::a", "64")}, 0, unix.IFF_NOARP
	got := update(t, n, m)
	m.Mtu = 1400
	if d := cmp.Diff(m, got, protocmp.Transform()); d != "" {
		t.Errorf("changed: UpdateInterface (-want +got):\n%s", d)
	}
}

func TestUpdateInterfaceSwapsNames(t *testing.T) {
	n := newNet(t, Options{})
	addLink(t, n, "eth0", macB)
	addLink(t, n, "eth1", macA)
	a := &types.Interface{Name: "eth0", HwAddr: macA, IPAddresses: []*types.IPAddress{ip4("10.1.0.2", "24")}}
	b := &types.Interface{Name: "eth1", HwAddr: macB, IPAddresses: []*types.IPAddress{ip4("10.2.0.2", "24")}}
	update(t, n, a)
	update(t, n, b)
	list, err := n.ListInterfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, i := range list.Interfaces {
		if i.HwAddr == macA || i.HwAddr == macB {
			got[i.Name] = i.HwAddr + " " + i.IPAddresses[0].Address
		}
	}
	want := map[string]string{"eth0": macA + " 10.1.0.2", "eth1": macB + " 10.2.0.2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("interfaces (-want +got):\n%s", d)
	}
}

func TestUpdateInterfaceWaitsForTheLink(t *testing.T) {
	n := newNet(t, Options{LinkWait: time.Minute})
	other := newAtSame(t, n)
	done := make(chan error, 1)
	go func() {
		_, err := n.UpdateInterface(t.Context(), eth0())
		done <- err
	}()
	addLink(t, other, "ens9", macA)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newAtSame is a second socket in the same namespace.
func newAtSame(t *testing.T, n *Net) *Net {
	t.Helper()
	other, err := newAt(n.ns, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return other
}

func TestALinkThatDoesNotComeIsNamed(t *testing.T) {
	n := newNet(t, Options{LinkWait: 10 * time.Millisecond})
	_, err := n.UpdateInterface(t.Context(), eth0())
	if err == nil || !strings.Contains(err.Error(), "Link not found") || !strings.Contains(err.Error(), macA) ||
		!errdefs.IsNotFound(err) {
		t.Errorf("UpdateInterface = %v, want errdefs.ErrNotFound with \"Link not found\" and the address", err)
	}
	n.wait = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.UpdateInterface(ctx, eth0()); !errdefs.IsNotFound(err) {
		t.Errorf("UpdateInterface = %v, want errdefs.ErrNotFound", err)
	}
	_, err = n.UpdateRoutes(t.Context(), &pb.Routes{Routes: []*types.Route{{Device: "eth7", Gateway: "10.0.0.1"}}})
	if err == nil || !strings.Contains(err.Error(), "Link not found: eth7") {
		t.Errorf("UpdateRoutes = %v, want \"Link not found: eth7\"", err)
	}
}

// table is the guest's main table, in words.
func tableOf(t *testing.T, n *Net) []string {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	list, err := n.table(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		s := e.String()
		if e.source.IsValid() {
			s += " src " + e.source.String()
		}
		if e.onLink {
			s += " onlink"
		}
		if e.mtu > 0 {
			s += " mtu"
		}
		out = append(out, s)
	}
	return out
}

func TestUpdateRoutes(t *testing.T) {
	v6 := types.IPFamily_v6
	kernel6 := []string{"fd00::/64 dev eth0", "fe80::/64 dev eth0", "fe80::/64 dev peth0"}
	connected := &types.Route{Dest: "10.1.0.0/24", Device: "eth0", Source: "10.1.0.2", Scope: 253}
	tests := []struct {
		name string
		in   []*types.Route
		want []string // IPv4, then IPv6 beside what the kernel keeps
	}{
		{
			name: "bridge plugin, gateway before the route to it",
			in: []*types.Route{
				{Gateway: "10.1.0.1", Device: "eth0", Mtu: 1300},
				connected,
				{Gateway: "fd00::1", Device: "eth0", Family: v6},
				{Dest: "fd00::/64", Device: "eth0", Family: v6},
			},
			want: []string{
				"0.0.0.0/0 via 10.1.0.1 dev eth0 mtu", "10.1.0.0/24 dev eth0 src 10.1.0.2",
				"::/0 via fd00::1 dev eth0",
			},
		},
		{
			name: "ptp plugin: no connected network, all through the gateway",
			in: []*types.Route{
				{Gateway: "10.1.0.1", Device: "eth0"},
				{Dest: "10.1.0.0/24", Gateway: "10.1.0.1", Device: "eth0", Source: "10.1.0.2"},
				{Dest: "10.1.0.1/32", Device: "eth0", Source: "10.1.0.2", Scope: 253},
			},
			want: []string{
				"0.0.0.0/0 via 10.1.0.1 dev eth0", "10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2",
				"10.1.0.1/32 dev eth0 src 10.1.0.2",
			},
		},
		{
			name: "calico: a gateway that is on the link by word only",
			in:   []*types.Route{{Gateway: "169.254.1.1", Device: "eth0", Flags: unix.RTNH_F_ONLINK}, connected},
			want: []string{"0.0.0.0/0 via 169.254.1.1 dev eth0 onlink", "10.1.0.0/24 dev eth0 src 10.1.0.2"},
		},
		{
			name: "several ways to one destination, first preferred",
			in: []*types.Route{
				connected,
				{Gateway: "10.1.0.1", Device: "eth0"},
				{Gateway: "10.1.0.9", Device: "eth0"},
				{Dest: "fd07::/64", Gateway: "fd00::1", Device: "eth0", Family: v6},
				{Dest: "fd07::/64", Gateway: "fd00::9", Device: "eth0", Family: v6},
			},
			want: []string{
				"0.0.0.0/0 via 10.1.0.1 dev eth0", "0.0.0.0/0 via 10.1.0.9 dev eth0",
				"10.1.0.0/24 dev eth0 src 10.1.0.2", "fd07::/64 via fd00::1 dev eth0", "fd07::/64 via fd00::9 dev eth0",
			},
		},
		{
			name: "an IPv4 route through an IPv6 gateway",
			in:   []*types.Route{connected, {Gateway: "fd00::1", Device: "eth0"}},
			want: []string{"0.0.0.0/0 via fd00::1 dev eth0", "10.1.0.0/24 dev eth0 src 10.1.0.2"},
		},
		{name: "nothing", in: nil},
	}
	n := newNet(t, Options{})
	addLink(t, n, "eth0", macA)
	m := eth0()
	update(t, n, m)
	for _, tt := range tests { // in one namespace: each replaces the one before
		t.Run(tt.name, func(t *testing.T) {
			for range 2 {
				if _, err := n.UpdateRoutes(t.Context(), &pb.Routes{Routes: tt.in}); err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, r := range tableOf(t, n) {
					if !strings.Contains(strings.Join(kernel6, "\n"), r) {
						got = append(got, r)
					}
				}
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("routes (-want +got):\n%s", d)
				}
			}
		})
	}
	if got := strings.Join(tableOf(t, n), "\n"); !strings.Contains(got, kernel6[0]) || !strings.Contains(got, kernel6[1]) {
		t.Errorf("the kernel's own IPv6 routes are gone: %s", got)
	}
	list, err := n.ListRoutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.UpdateRoutes(t.Context(), list); err != nil {
		t.Errorf("UpdateRoutes of what ListRoutes says: %v", err)
	}
}

func TestAddNeighbors(t *testing.T) {
	n := newNet(t, Options{})
	addLink(t, n, "eth0", macA)
	update(t, n, eth0())
	for _, mac := range []string{macB, "02:00:00:00:00:0c"} {
		err := n.AddNeighbors(t.Context(), &pb.ARPNeighbors{ARPNeighbors: []*types.ARPNeighbor{
			{ToIPAddress: ip4("10.1.0.1", "32"), Device: "eth0", Lladdr: mac, State: 128},
			{ToIPAddress: ip6("fd00::1", ""), Device: "eth0", Lladdr: mac},
		}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := n.nl.NeighList(0, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, e := range list {
			if e.State == unix.NUD_PERMANENT {
				got[e.IP.String()] = e.HardwareAddr.String()
			}
		}
		if d := cmp.Diff(map[string]string{"10.1.0.1": mac, "fd00::1": mac}, got); d != "" {
			t.Errorf("neighbours (-want +got):\n%s", d)
		}
	}
}

func TestSetDNS(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "run/resolv.conf"), filepath.Join(dir, "etc/resolv.conf")}
	n := &Net{resolv: files}
	if err := n.SetDNS(t.Context(), []string{"nameserver 10.0.0.1", "search a.b", "options ndots:5"}); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		got, err := os.ReadFile(f)
		if err != nil || string(got) != "nameserver 10.0.0.1\nsearch a.b\noptions ndots:5\n" {
			t.Errorf("%s = %q, %v", f, got, err)
		}
		if list, _ := os.ReadDir(filepath.Dir(f)); len(list) != 1 {
			t.Errorf("%s holds %v", filepath.Dir(f), list)
		}
	}
	if err := n.SetDNS(t.Context(), []string{"nameserver 1.1.1.1\nnameserver 2.2.2.2"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("SetDNS with a line break = %v, want errdefs.ErrInvalidArgument", err)
	}
}
