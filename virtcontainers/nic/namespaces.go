// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nic

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
)

// Links is a pod's network namespace while its VM runs; *network.Handle implements it.
type Links interface {
	network.Netlink
	Snapshot(ctx context.Context) (network.Snapshot, error)
}

// Watch hears of changes in the namespace; *network.Watch implements it.
type Watch interface {
	// Wait returns when something has changed and the namespace is quiet again, and with an error after
	// Close.
	Wait() error
	Close() error
}

// Attachment is what Attach made.
type Attachment struct {
	NICs  []network.NIC
	Guest network.Guest
	// Skipped is what of the namespace the guest does not get.
	Skipped []network.Skipped
	// Links, when not nil, is the namespace for what comes and goes while the VM runs, and Joints are the
	// interfaces that the VM starts with. Watch begins to listen for changes.
	Links   Links
	Joints  []network.Joint
	Options network.Options
	Watch   func() (Watch, error)
	// Detach undoes everything in the namespace and in this process.
	Detach func(ctx context.Context) error
}

// Namespaces makes network namespaces of this host and connects their interfaces with a VM.
type Namespaces struct{ opts network.Options }

// NewNamespaces makes the Namespaces that a configuration describes.
func NewNamespaces(c configs.Network) Namespaces {
	return Namespaces{network.Options{Model: c.Model, Queues: c.QueuesPerNIC}}
}

// Make makes a namespace that lives as long as path, a file that must not exist.
func (Namespaces) Make(path string) error { return netns.New(path) }

// Delete ends a namespace. It is idempotent.
func (Namespaces) Delete(path string) error { return netns.Delete(path) }

// Attach makes a tap for each usable interface of the namespace. Before it changes anything it calls record with what
// it is going to make. On error it leaves nothing. With standby, a namespace without interfaces gets a tap for one
// that may come later.
func (n Namespaces) Attach(ctx context.Context, path string, standby bool,
	record func([]network.Redirect) error,
) (_ Attachment, err error) {
	h, err := network.Open(path)
	if err != nil {
		return Attachment{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	s, err := h.Snapshot(ctx)
	if err != nil {
		return Attachment{}, fmt.Errorf("look at network namespace %s: %w", path, err)
	}
	w, err := network.Plan(s, n.opts)
	if err != nil {
		return Attachment{}, err
	}
	if len(w.Redirects) == 0 && standby && n.opts.Model != network.ModelNone {
		return n.standby(ctx, h)
	}
	if len(w.Redirects) > 0 {
		if err := record(w.Redirects); err != nil {
			return Attachment{}, err
		}
	}
	nics, u, err := network.Apply(ctx, h, w)
	if err != nil {
		return Attachment{}, err
	}
	a := Attachment{NICs: nics, Guest: w.Guest, Skipped: w.Skipped, Joints: network.Joints(w, nics)}
	return n.attached(h, u, a), nil
}

// attached completes an attachment with the namespace and the way back.
func (n Namespaces) attached(h *network.Handle, u *undo.Stack, a Attachment) Attachment {
	a.Detach = detach(u, h)
	if n.opts.Model != network.ModelNone {
		a.Links, a.Options = h, n.opts
		a.Watch = func() (Watch, error) { return h.Watch() }
	}
	return a
}

func detach(u *undo.Stack, h *network.Handle) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := u.Run(ctx); err != nil {
			return err
		}
		return h.Close()
	}
}

// standby gives the VM an interface for a link that may come before the container starts.
func (n Namespaces) standby(ctx context.Context, h *network.Handle) (Attachment, error) {
	nic, u, err := network.Standby(ctx, h)
	if err != nil {
		return Attachment{}, err
	}
	return n.attached(h, u, Attachment{NICs: []network.NIC{nic}, Joints: []network.Joint{{NIC: nic}}}), nil
}

// Clean undoes what an Attach recorded whose process is gone. It is idempotent, and fine with a namespace that is gone.
func (Namespaces) Clean(ctx context.Context, path string, made []network.Redirect) error {
	h, err := network.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(network.Remove(ctx, h, network.Wiring{Redirects: made}), h.Close())
}
