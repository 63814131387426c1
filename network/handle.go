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
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
	"github.com/coco-shim/coco/network/netns"
)

// socketTimeout bounds each exchange with the kernel, which answers at once or not at all.
const socketTimeout = 10 * time.Second

// Handle is the netlink of one network namespace. It belongs to the namespace for good: no thread stays
// in there, and it works while other goroutines do anything.
type Handle struct {
	ns *os.File
	nl *rtnl.Conn
}

// Open opens the netlink of the namespace at path, for example /proc/PID/ns/net. Close it.
func Open(path string) (*Handle, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	h := &Handle{ns: ns}
	err = netns.Enter(ns, func() (err error) {
		h.nl, err = rtnl.Open(socketTimeout)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", path, err), h.Close())
	}
	return h, nil
}

// Close releases the sockets and the namespace.
func (h *Handle) Close() error {
	var err error
	if h.nl != nil {
		err = h.nl.Close()
	}
	return errors.Join(err, h.ns.Close())
}

// CreateTap implements Netlink.
func (h *Handle) CreateTap(ctx context.Context, name string, queues int) (files []*os.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = netns.Enter(h.ns, func() error {
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
		req.SetUint16(uint16(flags | excl)) //nolint:gosec // as ifreq has it
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
	err = h.nl.Change(unix.RTM_SETLINK, 0, linkHeader(link.Index, 0, 0),
		rtnl.Nested(unix.IFLA_AF_SPEC,
			rtnl.Nested(unix.AF_INET6, rtnl.Attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenNone}))))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) &&
		!errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set address generation of %s: %w", tap, err)
	}
	if err := h.nl.Change(unix.RTM_SETLINK, 0, linkHeader(link.Index, unix.IFF_NOARP, unix.IFF_NOARP)); err != nil {
		return fmt.Errorf("switch arp off on %s: %w", tap, err)
	}
	err = h.nl.Change(unix.RTM_SETLINK, 0, linkHeader(link.Index, 0, 0), rtnl.Uint32(unix.IFLA_MTU, uint32(mtu))) //nolint:gosec // of a link
	if err != nil {
		return fmt.Errorf("set mtu %d on %s: %w", mtu, tap, err)
	}
	if err := h.nl.Change(unix.RTM_SETLINK, 0, linkHeader(link.Index, unix.IFF_UP, unix.IFF_UP)); err != nil {
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
	err = h.nl.Change(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ingressQdisc(link.Index)...)
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
	err = h.nl.Change(unix.RTM_DELQDISC, 0, ingressQdisc(link.Index)...)
	// EINVAL, ENOENT: there is no such qdisc. ENODEV: the link has gone meanwhile.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete ingress qdisc of %s: %w", name, err)
	}
	return nil
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
	if err := h.nl.Change(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		redirectFilter(src.Index, dst.Index)...); err != nil {
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
	if link.Kind != kindTap {
		return fmt.Errorf("delete tap %s: it is a %s: %w", name, link.Kind, errdefs.ErrFailedPrecondition)
	}
	if err := h.nl.Change(unix.RTM_DELLINK, 0, linkHeader(link.Index, 0, 0)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete tap %s: %w", name, err)
	}
	return nil
}

// link finds a link by name; errdefs.ErrNotFound when there is none.
func (h *Handle) link(ctx context.Context, name string) (Link, error) {
	if err := ctx.Err(); err != nil {
		return Link{}, err
	}
	if len(name) >= unix.IFNAMSIZ {
		return Link{}, fmt.Errorf("link %s: a name has at most %d characters: %w", name, unix.IFNAMSIZ-1, errdefs.ErrNotFound)
	}
	m, err := h.nl.Get(unix.RTM_GETLINK, linkHeader(0, 0, 0), rtnl.String(unix.IFLA_IFNAME, name))
	if errors.Is(err, unix.ENODEV) {
		return Link{}, fmt.Errorf("link %s: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return Link{}, fmt.Errorf("look up link %s: %w", name, err)
	}
	link, _, ok := parseLink(m.Body)
	if !ok {
		return Link{}, fmt.Errorf("look up link %s: the kernel's answer is not understood: %w", name, errdefs.ErrInternal)
	}
	return link, nil
}
