// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
)

const (
	podMAC  = "02:00:00:00:00:02"
	hostMAC = "02:00:00:00:00:01"
)

// newNetns makes a namespace for the test.
func newNetns(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := netns.New(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// do runs fn with the netlink of a namespace, on a thread in there.
func do(t *testing.T, path string, fn func(h *netlink.Handle) error) {
	t.Helper()
	err := netns.In(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pod makes what the bridge plugin of CNI would: a veth pair between a "host" and a pod, with
// addresses, a default route and a permanent neighbour.
func pod(t *testing.T) (host, pod string) {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap)
	host, pod = newNetns(t, "host"), newNetns(t, "pod")
	wait := settle(t, pod)
	do(t, host, func(h *netlink.Handle) error {
		ns, err := os.Open(pod)
		if err != nil {
			return err
		}
		defer ns.Close()
		hw, err := net.ParseMAC(hostMAC)
		if err != nil {
			return err
		}
		peer, err := net.ParseMAC(podMAC)
		if err != nil {
			return err
		}
		return errors.Join(
			h.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: "vethhost", MTU: 1400, HardwareAddr: hw},
				PeerName:  "eth0", PeerHardwareAddr: peer, PeerMTU: 1400, PeerNamespace: netlink.NsFd(int(ns.Fd())),
			}),
			configure(h, "vethhost", "10.9.0.1/24", "fd09::1/64"))
	})
	do(t, pod, func(h *netlink.Handle) error {
		if err := errors.Join(configure(h, "lo"), configure(h, "eth0", "10.9.0.2/24", "fd09::2/64")); err != nil {
			return err
		}
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		hw, err := net.ParseMAC(hostMAC)
		if err != nil {
			return err
		}
		return errors.Join(
			h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.9.0.1"), MTU: 1300}),
			h.NeighAdd(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, IP: net.ParseIP("10.9.0.7"), HardwareAddr: hw,
				State: netlink.NUD_PERMANENT,
			}))
	})
	wait("fd09::2/128", "fe80::/64")
	return host, pod
}

// settle returns a function that waits until the kernel has made routes to the given destinations: it
// makes those of IPv6 a moment after the link has its carrier.
func settle(t *testing.T, path string) func(dst ...string) {
	t.Helper()
	ns, err := vnetns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	if err := netlink.RouteSubscribeAt(ns, updates, done); err != nil {
		t.Fatal(err)
	}
	return func(dst ...string) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for len(dst) > 0 {
			select {
			case u := <-updates:
				if u.Type == unix.RTM_NEWROUTE && u.Dst != nil {
					dst = slices.DeleteFunc(dst, func(s string) bool { return s == u.Dst.String() })
				}
			case <-timeout:
				t.Fatalf("no routes to %v", dst)
			}
		}
		close(done)
		for range updates { // drains until the subscription has ended
		}
	}
}

func configure(h *netlink.Handle, name string, addrs ...string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", s, name, err)
		}
	}
	return h.LinkSetUp(l)
}

func open(t *testing.T, path string) *network.Handle {
	t.Helper()
	h, err := network.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func snapshot(t *testing.T, h *network.Handle) network.Snapshot {
	t.Helper()
	s, err := h.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// settled ignores what the kernel does by itself meanwhile: multicast memberships and what it learns.
var settled = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	cmpopts.IgnoreSliceElements(func(n network.Neighbour) bool { return !n.Permanent }),
}
