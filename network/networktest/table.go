// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package networktest is a network namespace in memory, for tests of packages that apply network
// plans. It behaves as the kernel in the properties that those packages can observe: a tap lives as long as its
// descriptors, an ingress hook takes one qdisc, a redirect dies with either end.
package networktest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sort"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/network"
)

// Table is the namespace. It implements network.Netlink.
type Table struct {
	mu    sync.Mutex
	links map[string]*link // guarded by mu
	addrs []network.Addr   // guarded by mu
	index int              // guarded by mu
	calls int              // guarded by mu
	fault fault            // guarded by mu
	held  bool             // guarded by mu; somebody else has the taps' descriptors too
}

var _ network.Netlink = (*Table)(nil)

type link struct {
	network.Link
	files    []*os.File // queues of a tap
	ingress  bool
	redirect string // name of the other link
}

type fault struct {
	call  int // number of the call that fails, from 1; 0 is none
	err   error
	after bool // the call has its effect and fails then
}

// New returns a namespace with a loopback and nothing else.
func New() *Table {
	t := &Table{links: map[string]*link{}}
	t.add(network.Link{Name: "lo", Kind: "device", Loopback: true, Up: true, MTU: 65536})
	return t
}

// AddVeth adds an interface as CNI would.
func (t *Table) AddVeth(name, mac string, mtu int, addrs ...netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.addLocked(network.Link{Name: name, Kind: "veth", Ethernet: true, Up: true, MAC: mac, MTU: mtu})
	for _, a := range addrs {
		t.addrs = append(t.addrs, network.Addr{Link: l.Index, Prefix: a, Permanent: true})
	}
}

// SetDown switches an interface off.
func (t *Table) SetDown(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.links[name].Up = false
}

// HoldTaps keeps taps whose descriptors are closed, as a VMM does that has duplicates.
func (t *Table) HoldTaps() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = true
}

// AddAddr gives an interface one more address.
func (t *Table) AddAddr(name string, a netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addrs = append(t.addrs, network.Addr{Link: t.links[name].Index, Prefix: a, Permanent: true})
}

// Remove takes an interface away, as its owner would.
func (t *Table) Remove(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	index := t.links[name].Index
	t.addrs = slices.DeleteFunc(t.addrs, func(a network.Addr) bool { return a.Link == index })
	t.removeLocked(name)
}

func (t *Table) add(l network.Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(l)
}

func (t *Table) addLocked(l network.Link) *link {
	t.index++
	l.Index = t.index
	t.links[l.Name] = &link{Link: l}
	return t.links[l.Name]
}

// FailCall makes the n-th call from now on fail with err, n from 1. With after, the call has its effect
// and fails then, like an answer that got lost.
func (t *Table) FailCall(n int, err error, after bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault = fault{call: t.calls + n, err: err, after: after}
}

// Calls is the number of calls so far.
func (t *Table) Calls() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls
}

// Snapshot returns the table as the input of network.Plan.
func (t *Table) Snapshot(context.Context) (network.Snapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reapLocked()
	s := network.Snapshot{Addrs: slices.Clone(t.addrs)}
	for _, l := range t.links {
		out := l.Link
		if l.ingress {
			out.Ingress = network.IngressOurs
		}
		s.Links = append(s.Links, out)
	}
	sort.Slice(s.Links, func(i, j int) bool { return s.Links[i].Index < s.Links[j].Index })
	return s, nil
}

// Leftovers lists taps, ingress hooks and redirects that exist, sorted.
func (t *Table) Leftovers() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reapLocked()
	var out []string
	for name, l := range t.links {
		if l.Kind == "tuntap" {
			out = append(out, fmt.Sprintf("tap %s mtu %d up %t", name, l.MTU, l.Up))
		}
		if l.ingress {
			out = append(out, "ingress of "+name)
		}
		if l.redirect != "" {
			out = append(out, "redirect "+name+" to "+l.redirect)
		}
	}
	sort.Strings(out)
	return out
}

// reapLocked removes taps whose descriptors are closed, as the kernel does.
func (t *Table) reapLocked() {
	for name, l := range t.links {
		open := slices.ContainsFunc(l.files, func(f *os.File) bool { _, err := f.Stat(); return err == nil })
		if l.Kind == "tuntap" && !open && !t.held {
			t.removeLocked(name)
		}
	}
}

func (t *Table) removeLocked(name string) {
	delete(t.links, name)
	for _, l := range t.links {
		if l.redirect == name {
			l.redirect = ""
		}
	}
}

// call counts, injects the fault and runs the effect.
func (t *Table) call(ctx context.Context, effect func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	t.reapLocked()
	t.calls++
	if t.fault.call != t.calls {
		return effect()
	}
	if t.fault.after {
		if err := effect(); err != nil {
			return err
		}
	}
	return t.fault.err
}

func (t *Table) linkLocked(name string) (*link, error) {
	l, ok := t.links[name]
	if !ok {
		return nil, fmt.Errorf("link %s: %w", name, errdefs.ErrNotFound)
	}
	return l, nil
}

// CreateTap implements network.Netlink; the descriptors are of /dev/null.
func (t *Table) CreateTap(ctx context.Context, name string, queues int) ([]*os.File, error) {
	var files []*os.File
	err := t.call(ctx, func() error {
		if _, ok := t.links[name]; ok {
			return fmt.Errorf("create tap %s: %w", name, errdefs.ErrAlreadyExists)
		}
		for range queues {
			f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		l := t.addLocked(network.Link{Name: name, Kind: "tuntap", Ethernet: true, MTU: 1500, MAC: "02:ff:00:00:00:01"})
		l.files = files
		return nil
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

// SetUp implements network.Netlink.
func (t *Table) SetUp(ctx context.Context, tap string, mtu int) error {
	return t.call(ctx, func() error {
		l, err := t.linkLocked(tap)
		if err != nil {
			return err
		}
		l.MTU, l.Up = mtu, true
		return nil
	})
}

// AddIngress implements network.Netlink.
func (t *Table) AddIngress(ctx context.Context, name string) error {
	return t.call(ctx, func() error {
		l, err := t.linkLocked(name)
		if err != nil {
			return err
		}
		if l.ingress {
			return fmt.Errorf("ingress of %s: %w", name, errdefs.ErrAlreadyExists)
		}
		l.ingress = true
		return nil
	})
}

// DelIngress implements network.Netlink.
func (t *Table) DelIngress(ctx context.Context, name string) error {
	return t.call(ctx, func() error {
		if l, ok := t.links[name]; ok {
			l.ingress, l.redirect = false, ""
		}
		return nil
	})
}

// Redirect implements network.Netlink.
func (t *Table) Redirect(ctx context.Context, from, to string) error {
	return t.call(ctx, func() error {
		src, err := t.linkLocked(from)
		if err != nil {
			return err
		}
		if _, err := t.linkLocked(to); err != nil {
			return err
		}
		if !src.ingress {
			return fmt.Errorf("redirect %s to %s: no ingress qdisc: %w", from, to, errdefs.ErrFailedPrecondition)
		}
		src.redirect = to
		return nil
	})
}

// DelTap implements network.Netlink. It closes the descriptors, which only the kernel could do otherwise:
// it cuts them off.
func (t *Table) DelTap(ctx context.Context, name string) error {
	return t.call(ctx, func() error {
		if l, ok := t.links[name]; ok {
			for _, f := range l.files {
				_ = f.Close()
			}
			t.removeLocked(name)
		}
		return nil
	})
}
