// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socketTimeout bounds each exchange with the kernel, which answers at once or not at all.
const socketTimeout = 10 * time.Second

// priority of our filters. It is also the mark by which a redirect of an earlier VM is known.
const priority = 0xc0c0

// ingressParent is where filters of an ingress qdisc hang: ffff:.
var ingressParent = netlink.MakeHandle(0xffff, 0)

// Handle is the netlink of one network namespace. It belongs to the namespace for good: no thread stays
// in there, and it works while other goroutines do anything.
type Handle struct {
	ns *os.File
	nl *netlink.Handle
}

// Open opens the netlink of the namespace at path, for example /proc/PID/ns/net. Close it.
func Open(path string) (*Handle, error) {
	ns, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	h := &Handle{ns: ns}
	err = inNetns(ns, func() (err error) {
		h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = h.nl.SetSocketTimeout(socketTimeout)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", path, err), h.Close())
	}
	return h, nil
}

// Close releases the sockets and the namespace.
func (h *Handle) Close() error {
	if h.nl != nil {
		h.nl.Close()
	}
	return h.ns.Close()
}

// CreateTap implements Netlink.
func (h *Handle) CreateTap(ctx context.Context, name string, queues int) (files []*os.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = inNetns(h.ns, func() error {
		files, err = openTap(name, queues)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create tap %s: %w", name, err)
	}
	return files, nil
}

// openTap opens the queues of a new tap in the thread's namespace.
func openTap(name string, queues int) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			files = nil
		}
	}()
	flags := unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for i := range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, fmt.Errorf("open /dev/net/tun: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), "tap "+name)) // stays blocking: it is only handed on
		req, err := unix.NewIfreq(name)
		if err != nil {
			return files, err
		}
		excl := 0
		if i == 0 {
			excl = unix.IFF_TUN_EXCL
		}
		req.SetUint16(uint16(flags | excl))
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		if errors.Is(err, unix.EBUSY) && i == 0 {
			return files, errdefs.ErrAlreadyExists
		}
		if err != nil {
			return files, fmt.Errorf("TUNSETIFF, queue %d: %w", i, err)
		}
	}
	return files, nil
}

// SetUp implements Netlink.
func (h *Handle) SetUp(ctx context.Context, tap string, mtu int) error {
	link, err := h.link(ctx, tap)
	if err != nil {
		return err
	}
	// Without this the namespace's stack would send router and neighbour solicitations to the guest.
	// A host without IPv6 has nothing to keep quiet.
	err = h.nl.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set address generation of %s: %w", tap, err)
	}
	if err := h.nl.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("switch arp off on %s: %w", tap, err)
	}
	if err := h.nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set mtu %d on %s: %w", mtu, tap, err)
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", tap, err)
	}
	return nil
}

// AddIngress implements Netlink.
func (h *Handle) AddIngress(ctx context.Context, name string) error {
	link, err := h.link(ctx, name)
	if err != nil {
		return err
	}
	err = h.nl.QdiscAdd(ingressOf(link))
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add ingress qdisc to %s: it has one already: %w", name, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("add ingress qdisc to %s (kernel option NET_SCH_INGRESS): %w", name, err)
	}
	return nil
}

// DelIngress implements Netlink.
func (h *Handle) DelIngress(ctx context.Context, name string) error {
	link, err := h.link(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = h.nl.QdiscDel(ingressOf(link))
	// EINVAL, ENOENT: there is no such qdisc. ENODEV: the link has gone meanwhile.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete ingress qdisc of %s: %w", name, err)
	}
	return nil
}

func ingressOf(link netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: ingressParent, Parent: netlink.HANDLE_INGRESS,
	}}
}

// Redirect implements Netlink with a u32 filter that matches every frame: matchall is a module that some
// kernels lack.
func (h *Handle) Redirect(ctx context.Context, from, to string) error {
	src, err := h.link(ctx, from)
	if err != nil {
		return err
	}
	dst, err := h.link(ctx, to)
	if err != nil {
		return err
	}
	err = h.nl.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: src.Attrs().Index, Parent: ingressParent, Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{netlink.NewMirredAction(dst.Attrs().Index)},
	})
	if err != nil {
		return fmt.Errorf("redirect %s to %s (kernel options NET_CLS_U32, NET_ACT_MIRRED): %w", from, to, err)
	}
	return nil
}

// DelTap implements Netlink.
func (h *Handle) DelTap(ctx context.Context, name string) error {
	link, err := h.link(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("delete tap %s: it is a %s: %w", name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	if err := h.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete tap %s: %w", name, err)
	}
	return nil
}

// link finds a link by name; errdefs.ErrNotFound when there is none.
func (h *Handle) link(ctx context.Context, name string) (netlink.Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	link, err := h.nl.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("link %s: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return link, nil
}
