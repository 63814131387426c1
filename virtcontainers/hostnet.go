// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

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

// hostNetwork is the Network of this host: package network on real namespaces.
type hostNetwork struct{ opts network.Options }

// NewNetwork makes the Network that a configuration describes.
func NewNetwork(c configs.Network) Network {
	return hostNetwork{network.Options{Model: c.Model, Queues: c.QueuesPerNIC}}
}

// Make implements Network.
func (hostNetwork) Make(path string) error { return netns.New(path) }

// Delete implements Network.
func (hostNetwork) Delete(path string) error { return netns.Delete(path) }

// Attach implements Network.
func (n hostNetwork) Attach(ctx context.Context, path string, standby bool,
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
func (n hostNetwork) attached(h *network.Handle, u *undo.Stack, a Attachment) Attachment {
	a.Detach = detach(u, h)
	if n.opts.Model != network.ModelNone {
		a.Links, a.Options = h, n.opts
		a.Watch = func() (LinkWatch, error) { return h.Watch() }
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
func (n hostNetwork) standby(ctx context.Context, h *network.Handle) (Attachment, error) {
	nic, u, err := network.Standby(ctx, h)
	if err != nil {
		return Attachment{}, err
	}
	return n.attached(h, u, Attachment{NICs: []network.NIC{nic}, Joints: []network.Joint{{NIC: nic}}}), nil
}

// Clean implements Network.
func (hostNetwork) Clean(ctx context.Context, path string, made []network.Redirect) error {
	h, err := network.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(network.Remove(ctx, h, network.Wiring{Redirects: made}), h.Close())
}
