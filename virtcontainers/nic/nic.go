// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nic keeps the interfaces of a VM like those of the pod's network namespace.
//
// The namespace changes while the VM runs: `docker network connect` brings a link, `disconnect` takes one, addresses
// and routes change. A Set has a goroutine that watches for such changes (Follow) and applies them: the interface of
// a removed link is unplugged, a new link is redirected to a tap that is plugged in, and the guest gets the changed
// configuration. QEMU cannot unplug an interface that the VM booted with: it stays as a spare, without an address. A
// new link gets a spare when nothing can be hot-plugged. The spare's MAC differs from the link's, so neighbours with
// an older entry for the address notice late.
//
// The start of a pod of one's container does the same once more (ConnectLate): `ctr run --cni` sets its network up
// right before, and does not wait for a device to be plugged in when there is one to spare.
//
// Namespaces is the host's side: it makes network namespaces and attaches a VM to one before it boots. Package network
// decides what becomes of each link.
package nic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network"
)

// unplugTime is how long the guest may take to release an interface. With native PCIe hot-plug its kernel waits for
// five seconds first, since it takes the request for a press of the slot's attention button, which can be cancelled.
const unplugTime = 20 * time.Second

// Options are what a Set needs beside the attachment.
type Options struct {
	Pod     string // its name, for the log
	Log     *slog.Logger
	Timeout time.Duration // bounds the work on one change
	// Record writes the redirects into the journal.
	Record func([]network.Redirect) error
	// Spawn starts a goroutine that ends with the pod. It returns false when the pod has ended.
	Spawn func(func(context.Context)) bool
	// Ended reports whether the VM has ended, or is about to.
	Ended func() bool
	// Late says that interfaces may come between the boot and the start of the pod's container.
	Late bool
}

// Set is the interfaces of a VM.
type Set struct {
	o     Options
	links Links // nil: links that come later are not followed
	watch func() (Watch, error)
	opts  network.Options
	rest  func(context.Context) error // detaches the remainder of the attachment
	late  atomic.Bool                 // ConnectLate has to look

	vm    hypervisor.NICPlugger // set by Boot; nil: it takes no interface while it runs
	guest Guest                 // set by Boot

	mu     lock.Mutex // guards the fields below
	joints []network.Joint
	sent   network.Guest   // the configuration that the guest has
	failed map[int]failure // why a link is not in the VM, by its number
}

// preference is which of two ways is tried first with a link that came.
type preference bool

const (
	plugFirst  preference = false
	spareFirst preference = true
)

// failure keeps a link from being retried without end: each attempt changes the namespace, which wakes the watch again.
type failure struct {
	link string // as it was then
	err  error
}

// New makes the Set of a VM that will boot with an attachment.
func New(a Attachment, o Options) *Set {
	s := &Set{
		o: o, links: a.Links, watch: a.Watch, opts: a.Options, rest: a.Detach, mu: lock.New(),
		joints: a.Joints, sent: a.Guest, failed: map[int]failure{},
	}
	s.late.Store(o.Late && a.Links != nil)
	return s
}

// Boot gives the Set the VM that runs and its agent, and configures the network that the VM booted with. A nil vm
// takes no interface while it runs.
func (n *Set) Boot(ctx context.Context, vm hypervisor.NICPlugger, g Guest) error {
	n.vm, n.guest = vm, g
	return n.configure(ctx, n.sent, len(n.sent.Routes)+len(n.sent.Rules) > 0)
}

// Detach removes the redirects of all current interfaces, then the resources of the attachment. It runs at the
// end of the pod, when nothing else uses n.
func (n *Set) Detach(ctx context.Context) error {
	if n.links != nil {
		if err := network.Remove(ctx, n.links, network.Wiring{Redirects: n.redirects()}); err != nil {
			return err
		}
	}
	return n.rest(ctx)
}

// redirects are those of all joints and some more.
func (n *Set) redirects(more ...network.Joint) (out []network.Redirect) {
	for _, j := range slices.Concat(n.joints, more) {
		if j.Index != 0 {
			out = append(out, j.Redirect())
		}
	}
	return out
}

// Follow keeps the VM's interfaces like the namespace's until the pod ends, where the attachment can be watched.
func (n *Set) Follow() {
	if n.watch == nil {
		return
	}
	w, err := n.watch()
	if err != nil {
		n.o.Log.Error("changes of the pod's network will not reach the guest", "pod", n.o.Pod, "error", err)
		return
	}
	follow := func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = w.Close() })
		defer stop()
		var known []string
		for { // first of all what has changed since the boot
			known = n.follow1(ctx, known)
			if err := w.Wait(); err != nil {
				if ctx.Err() == nil {
					n.o.Log.Error("changes of the pod's network do not reach the guest any more", "pod", n.o.Pod, "error",
						errors.Join(err, w.Close()))
				}
				return
			}
		}
	}
	if !n.o.Spawn(follow) {
		_ = w.Close()
	}
}

// follow1 brings the VM up to date and logs what could not be done and is not known yet. It returns all of
// that.
func (n *Set) follow1(ctx context.Context, known []string) []string {
	ctx, cancel := context.WithTimeout(ctx, n.o.Timeout)
	defer cancel()
	var now []string
	for _, err := range n.Sync(ctx) {
		now = append(now, err.Error())
		if !slices.Contains(known, err.Error()) && !n.o.Ended() {
			n.o.Log.Warn("the pod's network has changed and its VM could not follow", "pod", n.o.Pod, "error", err)
		}
	}
	return now
}

// ConnectLate looks, once, for interfaces that have come into a pod of one's namespace since its VM booted.
func (n *Set) ConnectLate(ctx context.Context) error {
	if !n.late.Swap(false) {
		return nil
	}
	if err := errors.Join(n.sync(ctx, spareFirst)...); err != nil {
		return fmt.Errorf("connect the network: %w", err)
	}
	return nil
}

// Sync makes the VM's interfaces and the guest's network those of the namespace. It goes on after an error, and
// each error names its interface.
func (n *Set) Sync(ctx context.Context) []error { return n.sync(ctx, plugFirst) }

func (n *Set) sync(ctx context.Context, pref preference) []error {
	if err := n.mu.Lock(ctx); err != nil {
		return []error{err}
	}
	defer n.mu.Unlock()
	s, err := n.links.Snapshot(ctx)
	if err != nil {
		return []error{fmt.Errorf("look at the network namespace: %w", err)}
	}
	c := network.Compare(s, n.joints, n.opts)
	errs := c.Refused
	for _, j := range c.Left {
		errs = append(errs, n.drop(ctx, s, j))
	}
	maps.DeleteFunc(n.failed, func(index int, _ failure) bool {
		return !slices.ContainsFunc(c.Came, func(r network.Redirect) bool { return r.Index == index })
	})
	for _, r := range c.Came {
		errs = append(errs, n.add(ctx, s, r, pref))
	}
	errs = append(errs, network.Unroutable(s), n.tellGuest(ctx, s))
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// add gives the VM an interface for a link that came. One that failed is tried again when it has changed.
func (n *Set) add(ctx context.Context, s network.Snapshot, r network.Redirect, pref preference) error {
	j := network.Joint{Link: r.Link, Index: r.Index, MAC: r.MAC, NIC: network.NIC{MAC: r.MAC, MTU: r.MTU}}
	link := network.GuestOf(s, []network.Joint{j}).String()
	if f, ok := n.failed[r.Index]; ok && f.link == link {
		return f.err
	}
	delete(n.failed, r.Index)
	err := n.join(ctx, s, r, j, pref == spareFirst && n.spare() >= 0)
	if (errdefs.IsFailedPrecondition(err) || errdefs.IsNotImplemented(err)) && pref == plugFirst && n.spare() >= 0 {
		err = n.join(ctx, s, r, j, true)
	}
	if err != nil {
		err = fmt.Errorf("interface %s came while the VM runs, and is not in it: %w", r.Link, err)
		n.failed[r.Index] = failure{link, err}
		return err
	}
	n.o.Log.Info("interface connected", "pod", n.o.Pod, "interface", r.Link)
	return nil
}

// spare finds an interface that is joined with no link; -1: there is none.
func (n *Set) spare() int {
	return slices.IndexFunc(n.joints, func(j network.Joint) bool { return j.Index == 0 })
}

// join joins a link with an interface to spare, or with one that it plugs in, and configures that.
func (n *Set) join(ctx context.Context, s network.Snapshot, r network.Redirect, j network.Joint,
	useSpare bool,
) (err error) {
	var u undo.Stack
	defer u.RunOnError(&err)
	spare := n.spare()
	if useSpare {
		j.NIC, j.Path = n.joints[spare].NIC, n.joints[spare].Path
		r.Tap = j.NIC.Tap
	}
	j.NIC.Tap = r.Tap
	if err := n.o.Record(n.redirects(j)); err != nil {
		return err
	}
	u.Push("take it out of the journal", func(context.Context) error { return n.o.Record(n.redirects()) })
	if useSpare {
		err = network.Connect(ctx, n.links, r, &u)
	} else {
		j.NIC, j.Path, err = n.plug(ctx, r, &u)
	}
	if err != nil {
		return err
	}
	g := network.GuestOf(s, []network.Joint{j})
	for _, i := range g.Interfaces {
		if err := n.updateInterface(ctx, i); err != nil {
			return err
		}
	}
	old := slices.DeleteFunc(n.sent.Interfaces, func(i *types.Interface) bool { return i.GetHwAddr() == j.NIC.MAC })
	n.sent.Interfaces = append(old, g.Interfaces...)
	if useSpare {
		n.joints[spare] = j
	} else {
		n.joints = append(n.joints, j)
	}
	return nil
}

// plug makes a tap, joins it with the link and plugs it into the VM.
func (n *Set) plug(ctx context.Context, r network.Redirect, u *undo.Stack) (nic network.NIC,
	path string, err error,
) {
	if n.vm == nil {
		return nic, "", fmt.Errorf("the VMM takes no interface while it runs; connect the network before the container is "+
			"created: %w", errdefs.ErrNotImplemented)
	}
	made, undone, err := network.Apply(ctx, n.links, network.Wiring{Redirects: []network.Redirect{r}})
	if err != nil {
		return nic, "", err
	}
	u.Adopt(undone)
	nic = made[0]
	nic.Name = fmt.Sprintf("link%d", r.Index) // never used again in this namespace, unlike the link's name
	path, err = n.vm.PlugNIC(ctx, hypervisor.NIC{ID: nic.Name, MAC: nic.MAC, Tap: nic.Files, MTU: nic.MTU})
	if err != nil {
		return nic, "", err
	}
	u.Push("unplug interface "+r.Link, func(ctx context.Context) error { return n.vm.UnplugNIC(ctx, nic.Name) })
	return nic, path, nic.CloseFiles()
}

// drop unplugs the interface of a link that has left, or keeps it as a spare. On an error nothing has changed, and
// the next change of the namespace retries it.
func (n *Set) drop(ctx context.Context, s network.Snapshot, j network.Joint) error {
	err := n.unplug(ctx, j)
	spare := errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) // it is one of the boot's
	if err != nil && !spare {
		return fmt.Errorf("interface %s has left, and its place in the VM is not free: %w", j.Link, err)
	}
	var errs []error
	for _, l := range s.Links {
		if l.Index == j.Index { // it is there, under another name or MAC
			errs = append(errs, n.links.DelIngress(ctx, l.Name))
		}
	}
	n.joints = slices.DeleteFunc(n.joints, func(o network.Joint) bool { return o.NIC.Tap == j.NIC.Tap })
	if spare {
		n.joints = append(n.joints, network.Joint{NIC: j.NIC, Path: j.Path})
		errs = append(errs, n.updateInterface(ctx, j.Idle()))
	} else {
		errs = append(errs, n.links.DelTap(ctx, j.NIC.Tap))
	}
	if err := errors.Join(append(errs, n.o.Record(n.redirects()))...); err != nil {
		return fmt.Errorf("interface %s has left: %w", j.Link, err)
	}
	n.o.Log.Info("interface disconnected", "pod", n.o.Pod, "interface", j.Link, "kept", spare)
	return nil
}

func (n *Set) unplug(ctx context.Context, j network.Joint) error {
	if n.vm == nil {
		return errdefs.ErrNotImplemented
	}
	ctx, cancel := context.WithTimeout(ctx, unplugTime)
	defer cancel()
	return n.vm.UnplugNIC(ctx, j.NIC.Name)
}

// tellGuest brings addresses, routes and neighbours up to date.
func (n *Set) tellGuest(ctx context.Context, s network.Snapshot) error {
	g := network.GuestOf(s, n.joints)
	news, routes := g.Since(n.sent)
	if err := n.configure(ctx, news, routes); err != nil {
		return fmt.Errorf("the guest's network is not up to date: %w", err)
	}
	n.sent = g
	return nil
}
