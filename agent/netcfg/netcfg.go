// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netcfg configures the guest's network as the agent protocol asks: interfaces, routes,
// neighbours and resolv.conf. It is the guest's half of what package network plans on the host.
//
// All input comes from the host: it is bounded and checked (parse.go) before anything is
// changed, and the loopback cannot be changed. A Net keeps one netlink socket; its calls run one
// after the other. It does not know the agent's services and does not decide what a policy
// allows.
package netcfg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/netdump"
)

// Options are the agent's choices; the zero value is right for a guest.
type Options struct {
	// LinkWait bounds the wait for an interface that is not there yet (hot-plug). 0 is 5 s.
	LinkWait time.Duration
	// ResolvConf are the files that SetDNS writes. Empty: the one that the protocol names and the
	// guest's own /etc/resolv.conf.
	ResolvConf []string
}

// Net is the guest's network. Close it.
type Net struct {
	mu     sync.Mutex // one change at a time; held across netlink, which answers at once
	nl     *netlink.Handle
	ns     netns.NsHandle // where to subscribe; None is the caller's namespace
	wait   time.Duration
	resolv []string
	policy policy // guarded by mu
}

// New opens the network of the namespace that the caller is in and brings the loopback up.
func New(o Options) (*Net, error) { return newAt(netns.None(), o) }

// newAt is New for the tests, which have namespaces of their own.
func newAt(ns netns.NsHandle, o Options) (*Net, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &Net{nl: h, ns: ns, wait: o.LinkWait, resolv: o.ResolvConf}
	if n.wait == 0 {
		n.wait = 5 * time.Second
	}
	if len(n.resolv) == 0 {
		n.resolv = []string{contract.SandboxResolvConf, "/etc/resolv.conf"}
	}
	lo, err := h.LinkByName(loopback)
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("bring up the loopback: %w", err)
	}
	return n, nil
}

// Close releases the netlink socket.
func (n *Net) Close() { n.nl.Close() }

func (n *Net) links(ctx context.Context) ([]netlink.Link, error) {
	return netdump.Read(ctx, "links", n.nl.LinkList)
}

// linkNotFound is the phrase by which Kata's shims know that they should ask again.
const linkNotFound = "Link not found"

// linkByName finds a link.
func (n *Net) linkByName(name string) (netlink.Link, error) {
	l, err := n.nl.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("%s: %s: %w", linkNotFound, name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return l, nil
}

// ListInterfaces lists all interfaces with their addresses.
func (n *Net) ListInterfaces(ctx context.Context) (*pb.Interfaces, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	links, err := n.links(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.Interfaces{}
	for _, l := range links {
		m, err := n.describe(ctx, l)
		if err != nil {
			return nil, err
		}
		out.Interfaces = append(out.Interfaces, m)
	}
	return out, nil
}

// describe is a link as a message.
func (n *Net) describe(ctx context.Context, l netlink.Link) (*types.Interface, error) {
	a := l.Attrs()
	addrs, err := netdump.Read(ctx, "addresses of "+a.Name, func() ([]netlink.Addr, error) {
		return n.nl.AddrList(l, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, err
	}
	m := &types.Interface{
		Device: a.Name, Name: a.Name, HwAddr: a.HardwareAddr.String(), Mtu: uint64(max(a.MTU, 0)), Type: l.Type(),
		RawFlags: a.RawFlags & unix.IFF_NOARP,
	}
	for _, ad := range addrs {
		ip, ok := netip.AddrFromSlice(ad.IP)
		if !ok {
			continue
		}
		bits, _ := ad.Mask.Size()
		m.IPAddresses = append(m.IPAddresses, &types.IPAddress{
			Family: family(ip.Unmap()), Address: ip.Unmap().String(), Mask: strconv.Itoa(bits),
		})
	}
	return m, nil
}

func family(ip netip.Addr) types.IPFamily {
	if ip.Is6() {
		return types.IPFamily_v6
	}
	return types.IPFamily_v4
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// AddNeighbors adds entries of the neighbour table, or replaces those of the same address. All are checked
// before the first is made.
func (n *Net) AddNeighbors(_ context.Context, list *pb.ARPNeighbors) error {
	if c := len(list.GetARPNeighbors()); c > maxNeighbours {
		return invalid("%d neighbours; expected at most %d", c, maxNeighbours)
	}
	var all []neighbour
	for _, m := range list.GetARPNeighbors() {
		p, err := parseNeighbour(m)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range all {
		l, err := n.linkByName(p.device)
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", p.ip, err)
		}
		err = n.nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: p.ip.AsSlice(), HardwareAddr: p.mac, State: p.state, Flags: p.flags,
		})
		if err != nil {
			return fmt.Errorf("neighbour %s dev %s: %w", p.ip, p.device, err)
		}
	}
	return nil
}

// SetDNS writes resolv.conf. Each file is replaced as a whole or not at all.
func (n *Net) SetDNS(_ context.Context, lines []string) error {
	text, err := parseDNS(lines)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, path := range n.resolv {
		if err := replaceFile(path, text); err != nil {
			return fmt.Errorf("set dns: %w", err)
		}
	}
	return nil
}

func replaceFile(path, text string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // containers read it
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".resolv-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
