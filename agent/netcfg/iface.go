// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/netdump"
)

// UpdateInterface sets name, MTU and addresses of the interface with the request's hardware address, and sets it
// up. It waits for an interface that does not exist yet. It returns the kernel's state of the interface
// afterwards.
func (n *Net) UpdateInterface(ctx context.Context, m *types.Interface) (*types.Interface, error) {
	want, err := parseInterface(m)
	if err != nil {
		return nil, err
	}
	link, err := n.waitLink(ctx, want.mac)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", want.name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.configure(ctx, link, want); err != nil {
		return nil, fmt.Errorf("interface %s: %w", want.name, err)
	}
	if link, err = n.linkByName(want.name); err != nil {
		return nil, err
	}
	return n.describe(ctx, link)
}

func (n *Net) configure(ctx context.Context, link netlink.Link, want iface) error {
	if err := n.rename(ctx, link, want.name); err != nil {
		return err
	}
	if want.linkLocal() {
		// The link-local address is given: the kernel must not make its own, which it would have to
		// check for duplicates for a second first.
		err := n.nl.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
		if err != nil {
			return fmt.Errorf("set ipv6 address generation: %w", err)
		}
	}
	if want.mtu != 0 && want.mtu != link.Attrs().MTU {
		if err := n.nl.LinkSetMTU(link, want.mtu); err != nil {
			return fmt.Errorf("set mtu %d: %w", want.mtu, err)
		}
	}
	arp := n.nl.LinkSetARPOn
	if want.noARP {
		arp = n.nl.LinkSetARPOff
	}
	if err := arp(link); err != nil {
		return fmt.Errorf("set arp: %w", err)
	}
	// Up before the addresses: the kernel makes the routes to their networks only on a link that is up.
	if err := n.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return n.setAddresses(ctx, link, want)
}

// setAddresses adds missing addresses and removes those that are not in the request, except those of the
// kernel: an IPv6 link-local address when the request has none, and addresses with a lifetime.
func (n *Net) setAddresses(ctx context.Context, link netlink.Link, want iface) error {
	have, err := netdump.Read(ctx, "addresses", func() ([]netlink.Addr, error) {
		return n.nl.AddrList(link, netlink.FAMILY_ALL)
	})
	if err != nil {
		return err
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		p := netip.PrefixFrom(ip.Unmap(), bits)
		learnt := p.Addr().Is6() && (a.Flags&unix.IFA_F_PERMANENT == 0 || p.Addr().IsLinkLocalUnicast() && !want.linkLocal())
		if slices.Contains(want.addrs, p) || learnt {
			continue
		}
		err := n.nl.AddrDel(link, &netlink.Addr{IPNet: a.IPNet, Peer: a.Peer})
		// With a primary IPv4 address go its secondary ones.
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, p := range want.addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// The same address was checked where the pod's interface got it; here it would find itself.
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// rename gives the link its name. A link that has the name now, because the kernel numbers them in
// the order in which it finds them, moves out of the way; a request of its own will name it.
func (n *Net) rename(ctx context.Context, link netlink.Link, name string) error {
	if link.Attrs().Name == name {
		return nil
	}
	links, err := n.links(ctx)
	if err != nil {
		return err
	}
	for _, other := range links {
		if other.Attrs().Name == name {
			if err := n.setName(other, fmt.Sprintf("coco_%d", other.Attrs().Index)); err != nil {
				return fmt.Errorf("move link %s out of the way: %w", name, err)
			}
		}
	}
	if err := n.setName(link, name); err != nil {
		return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
	}
	link.Attrs().Name = name
	return nil
}

// setName renames a link, which has to be down for it.
func (n *Net) setName(link netlink.Link, name string) error {
	up := link.Attrs().Flags&net.FlagUp != 0
	if up {
		if err := n.nl.LinkSetDown(link); err != nil {
			return err
		}
	}
	err := n.nl.LinkSetName(link, name)
	if up {
		err = errors.Join(err, n.nl.LinkSetUp(link))
	}
	return err
}

// waitLink finds the link with a hardware address, waiting for it until ctx ends or the wait is over.
func (n *Net) waitLink(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	if l, err := n.linkByMAC(ctx, mac); l != nil || err != nil {
		return l, err
	}
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	o := netlink.LinkSubscribeOptions{Namespace: &n.ns}
	if err := netlink.LinkSubscribeWithOptions(updates, done, o); err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until the subscription's goroutine has ended
		}
	}()
	timer := time.NewTimer(n.wait)
	defer timer.Stop()
	for {
		// Looked up after the subscription, and again after each event, so that none is missed.
		if l, err := n.linkByMAC(ctx, mac); l != nil || err != nil {
			return l, err
		}
		var why string
		select {
		case _, ok := <-updates:
			if ok {
				continue
			}
			why = "the subscription to links broke off"
		case <-timer.C:
			why = fmt.Sprintf("none came within %s", n.wait)
		case <-ctx.Done():
			why = ctx.Err().Error()
		}
		return nil, fmt.Errorf("%s: hardware address %s: %s: %w", linkNotFound, mac, why, errdefs.ErrNotFound)
	}
}

// linkByMAC returns nil when there is none. Virtual links (vlan, bridge) share the address of the one
// below them, which was there first.
func (n *Net) linkByMAC(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := n.links(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if a := l.Attrs(); bytes.Equal(a.HardwareAddr, mac) && a.Flags&net.FlagLoopback == 0 {
			return l, nil
		}
	}
	return nil, nil // documented
}
