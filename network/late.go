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
// Connect joins it with a link that came. Which one, Compare decides.

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

// Connect joins a link with a tap that exists. The undo, which leaves the tap, goes onto u.
func Connect(ctx context.Context, nl Netlink, r Redirect, u *undo.Stack) error {
	hooks := []string{r.Tap} // an earlier link may have left the tap's half of a redirect
	if r.Stale {
		hooks = append(hooks, r.Link)
	}
	for _, h := range hooks {
		if err := nl.DelIngress(ctx, h); err != nil {
			return fmt.Errorf("remove an earlier redirect from %s: %w", h, err)
		}
	}
	if err := redirect(ctx, nl, r, u); err != nil {
		return fmt.Errorf("join link %s and tap %s: %w", r.Link, r.Tap, err)
	}
	return nil
}
