// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/undo"
)

// Netlink is the handful of changes that Apply makes in a namespace. Handle and networktest.Table
// implement it.
type Netlink interface {
	// CreateTap makes a tap that lives as long as any of the returned descriptors, one per queue. A link
	// of that name is errdefs.ErrAlreadyExists.
	CreateTap(ctx context.Context, name string, queues int) ([]*os.File, error)
	// SetUp gives a tap its MTU, keeps the namespace's own IP stack quiet on it, and brings it up.
	SetUp(ctx context.Context, tap string, mtu int) error
	// AddIngress opens a link's ingress hook.
	AddIngress(ctx context.Context, link string) error
	// DelIngress closes it, with all redirects from that link. A hook or link that is gone is fine.
	DelIngress(ctx context.Context, link string) error
	// Redirect sends every frame that enters from out by to.
	Redirect(ctx context.Context, from, to string) error
	// DelTap removes a tap even if somebody still holds its descriptors. One that is gone is fine.
	DelTap(ctx context.Context, name string) error
}

// NIC is an interface ready for the VMM.
type NIC struct {
	Name string // the interface's name in the pod and in the guest
	Tap  string
	MAC  string
	MTU  int
	// Files are the tap's queues, opened with IFF_VNET_HDR and IFF_NO_PI. The VMM gets duplicates. The tap is
	// gone once all are closed: when the VMM has its own, CloseFiles leaves the tap's life to the VMM's.
	Files []*os.File
}

// CloseFiles closes this process's descriptors of the tap; closing twice is fine.
func (n NIC) CloseFiles() error {
	var errs []error
	for _, f := range n.Files {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Apply makes the taps and the redirects. The stack undoes everything, in the pod's namespace and in this
// process. On error nothing is left and the stack is nil.
func Apply(ctx context.Context, nl Netlink, w Wiring) (nics []NIC, _ *undo.Stack, err error) {
	u := &undo.Stack{}
	defer u.RunOnError(&err)
	for _, r := range w.Redirects {
		nic, err := join(ctx, nl, r, u)
		if err != nil {
			return nil, nil, fmt.Errorf("join link %s and tap %s: %w", r.Link, r.Tap, err)
		}
		nics = append(nics, nic)
	}
	return nics, u, nil
}

// join wires one link. Frames flow towards the pod's side last, when the tap is ready for them.
func join(ctx context.Context, nl Netlink, r Redirect, u *undo.Stack) (NIC, error) {
	if r.Stale {
		if err := nl.DelIngress(ctx, r.Link); err != nil {
			return NIC{}, fmt.Errorf("remove the redirect of an earlier vm: %w", err)
		}
	}
	files, err := nl.CreateTap(ctx, r.Tap, r.Queues)
	nic := NIC{Name: r.Link, Tap: r.Tap, MAC: r.MAC, MTU: r.MTU, Files: files}
	// A step that failed may have had its effect all the same (a lost answer); only what was there before is
	// somebody else's.
	if !errdefs.IsAlreadyExists(err) {
		u.Push("delete tap "+r.Tap, func(ctx context.Context) error {
			return errors.Join(nic.CloseFiles(), nl.DelTap(ctx, r.Tap))
		})
	}
	if err != nil {
		return NIC{}, err
	}
	if err := redirect(ctx, nl, r, u); err != nil {
		return NIC{}, err
	}
	return nic, nil
}

// redirect lets the frames flow between a link and a tap that exists.
func redirect(ctx context.Context, nl Netlink, r Redirect, u *undo.Stack) error {
	if err := nl.SetUp(ctx, r.Tap, r.MTU); err != nil {
		return err
	}
	if err := nl.AddIngress(ctx, r.Tap); err != nil {
		return err
	}
	if err := nl.Redirect(ctx, r.Tap, r.Link); err != nil {
		return err
	}
	err := nl.AddIngress(ctx, r.Link)
	if !errdefs.IsAlreadyExists(err) {
		u.Push("end redirect from "+r.Link, func(ctx context.Context) error { return nl.DelIngress(ctx, r.Link) })
	}
	if err != nil {
		return err
	}
	return nl.Redirect(ctx, r.Link, r.Tap)
}

// Remove removes the redirects and taps that Apply made for w, also after the process that made them is gone. A missing
// one is no error, so Remove may be repeated. It goes on after errors and joins them.
func Remove(ctx context.Context, nl Netlink, w Wiring) error {
	var errs []error
	for _, r := range w.Redirects {
		if err := nl.DelIngress(ctx, r.Link); err != nil {
			errs = append(errs, fmt.Errorf("end redirect from %s: %w", r.Link, err))
		}
		if err := nl.DelTap(ctx, r.Tap); err != nil {
			errs = append(errs, fmt.Errorf("delete tap %s: %w", r.Tap, err))
		}
	}
	return errors.Join(errs...)
}
