// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/networktest"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

// linkTable is a network namespace whose interfaces come and go, with somebody who listens.
type linkTable struct {
	*networktest.Table
	changed chan struct{}
}

func newLinkTable() *linkTable {
	l := &linkTable{Table: networktest.New(), changed: make(chan struct{}, 1)}
	l.HoldTaps()
	return l
}

func (l *linkTable) attach(ctx context.Context, standby bool, record func([]network.Redirect) error) (nic.Attachment,
	error,
) {
	s, err := l.Snapshot(ctx)
	if err != nil {
		return nic.Attachment{}, err
	}
	a := nic.Attachment{Links: l, Watch: func() (nic.Watch, error) {
		return &fakeWatch{l.changed, make(chan struct{}), sync.Once{}}, nil
	}}
	if len(s.Links) == 1 && standby {
		spare, u, err := network.Standby(ctx, l)
		if err != nil {
			return nic.Attachment{}, err
		}
		a.NICs, a.Joints, a.Detach = []network.NIC{spare}, []network.Joint{{NIC: spare}}, u.Run
		return a, nil
	}
	w, err := network.Plan(s, network.Options{})
	if err != nil {
		return nic.Attachment{}, err
	}
	if err := record(w.Redirects); err != nil {
		return nic.Attachment{}, err
	}
	nics, u, err := network.Apply(ctx, l, w)
	if err != nil {
		return nic.Attachment{}, err
	}
	a.NICs, a.Joints, a.Guest, a.Skipped, a.Detach = nics, network.Joints(w, nics), w.Guest, w.Skipped, u.Run
	return a, nil
}

// fakeWatch hears of what is sent to changed.
type fakeWatch struct {
	changed <-chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func (w *fakeWatch) Wait() error {
	select {
	case <-w.changed:
		return nil
	case <-w.closed:
		return os.ErrClosed
	}
}

func (w *fakeWatch) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// guestNet is what the guest's network looks like.
type guestNet struct {
	ifaces []string // "eth0 02:… 10.0.0.2/24", sorted
	routes int
}

func (g *guestNet) update(i *types.Interface, v *fakeVM) error {
	mac := i.GetHwAddr()
	have := slices.ContainsFunc(v.spec.NICs, func(n hypervisor.NIC) bool { return n.MAC == mac })
	for _, m := range v.nics {
		have = have || m == mac
	}
	if !have {
		return fmt.Errorf("Link not found: hardware address %s: %w", mac, errdefs.ErrNotFound) // the agent's words
	}
	words := []string{i.GetName(), mac}
	for _, a := range i.GetIPAddresses() {
		words = append(words, a.GetAddress()+"/"+a.GetMask())
	}
	g.drop(mac)
	g.ifaces = append(g.ifaces, strings.Join(words, " "))
	slices.Sort(g.ifaces)
	return nil
}

func (g *guestNet) drop(mac string) {
	g.ifaces = slices.DeleteFunc(g.ifaces, func(s string) bool { return strings.Contains(s, mac) })
}

// network looks at the guest's network or changes it.
func (v *fakeVM) network(fn func(*guestNet) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return fn(&v.net)
}

func (v *fakeVM) PlugNIC(_ context.Context, n hypervisor.NIC) (string, error) {
	if err := v.w.op("plug nic"); err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.nics) >= v.w.ports {
		return "", fmt.Errorf("plug network interface %s: all %d places are taken: %w", n.ID, v.w.ports,
			errdefs.ErrFailedPrecondition)
	}
	if _, err := n.Tap[0].Stat(); err != nil {
		return "", errors.Join(errors.New("the tap is closed"), err)
	}
	v.nics[n.ID] = n.MAC
	return fmt.Sprintf("%02x/00", 0x10+len(v.nics)), nil
}

func (v *fakeVM) UnplugNIC(_ context.Context, id string) error {
	if err := v.w.op("unplug nic"); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	mac, ok := v.nics[id]
	if !ok {
		return fmt.Errorf("unplug network interface %s: %w", id, errdefs.ErrNotFound)
	}
	delete(v.nics, id)
	v.net.drop(mac)
	return nil
}
