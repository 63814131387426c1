// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/undo"
)

// Some clients connect a container between its creation and its start (`ctr run --cni`), when the VM
// has booted. For them the VM gets an interface in advance that leads nowhere: Standby makes its tap, and
// Connect joins it with the link that came, if one did.

const (
	standbyTap = tapPrefix + "0_late"
	standbyMTU = 1500
)

// Standby makes a tap for a link that may come later. The stack removes it.
func Standby(ctx context.Context, nl Netlink) (_ NIC, _ *undo.Stack, err error) {
	u := &undo.Stack{}
	defer u.RunOnError(&err)
	mac := make(net.HardwareAddr, 6)
	if _, err := rand.Read(mac); err != nil {
		return NIC{}, nil, fmt.Errorf("choose a MAC address: %w", err)
	}
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered (IEEE 802, 8.2)
	files, err := nl.CreateTap(ctx, standbyTap, 1)
	nic := NIC{Name: "late", Tap: standbyTap, MAC: mac.String(), MTU: standbyMTU, Files: files}
	if !errdefs.IsAlreadyExists(err) {
		u.Push("delete tap "+standbyTap, func(ctx context.Context) error {
			if err := nic.CloseFiles(); err != nil {
				return err
			}
			return nl.DelTap(ctx, standbyTap)
		})
	}
	if err != nil {
		return NIC{}, nil, err
	}
	return nic, u, nil
}

// Connect joins the standby interface with the one link that the namespace has by now and returns what
// the guest must be told. Without a link that is nothing. The undo goes onto u.
func Connect(ctx context.Context, nl Netlink, standby NIC, s Snapshot, o Options, u *undo.Stack) (Guest, error) {
	w, err := Plan(s, o)
	if err != nil {
		return Guest{}, err
	}
	switch len(w.Redirects) {
	case 0:
		return Guest{}, nil
	case 1:
	default:
		return Guest{}, fmt.Errorf("%d interfaces came after the VM had booted, and it has one to spare: connect the network before the container is created: %w",
			len(w.Redirects), errdefs.ErrFailedPrecondition)
	}
	r := w.Redirects[0]
	r.Tap = standby.Tap
	if err := redirect(ctx, nl, r, u); err != nil {
		return Guest{}, fmt.Errorf("join link %s and tap %s: %w", r.Link, r.Tap, err)
	}
	// The guest knows its interface by the MAC that it booted with, and keeps it: switches learn it.
	w.Guest.Interfaces[0].HwAddr = standby.MAC
	w.Guest.Interfaces[0].Mtu = min(w.Guest.Interfaces[0].Mtu, standbyMTU)
	return w.Guest, nil
}
