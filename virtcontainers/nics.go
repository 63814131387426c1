// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network"
)

// The pod's network namespace changes while its VM runs: `docker network connect` brings a link, `disconnect`
// takes one, addresses and routes change. One goroutine watches for such changes (followLinks), and syncNICs applies
// them to the VM: the interface of a removed link is unplugged, a new link is redirected to a tap that is plugged in,
// and the guest gets the changed configuration. QEMU cannot unplug an interface that the VM booted with: it stays as a
// spare, without an address. A new link gets a spare when nothing can be hot-plugged. The spare's MAC differs from the
// link's, so neighbours with an older entry for the address notice late.
//
// The start of a pod of one's container does the same once more (connectLate): `ctr run --cni` sets its
// network up right before, and does not wait for a device to be plugged in when there is one to spare.

// Links is a pod's network namespace while its VM runs; *network.Handle implements it.
type Links interface {
	network.Netlink
	Snapshot(ctx context.Context) (network.Snapshot, error)
}

// LinkWatch hears of changes in the namespace; *network.Watch implements it.
type LinkWatch interface {
	// Wait returns when something has changed and the namespace is quiet again, and with an error after
	// Close.
	Wait() error
	Close() error
}

// unplugTime is how long the guest may take to release an interface. With native PCIe hot-plug its kernel waits for
// five seconds first, since it takes the request for a press of the slot's attention button, which can be cancelled.
const unplugTime = 20 * time.Second

// nics are the VM's interfaces.
type nics struct {
	links  Links // nil: links that come later are not followed
	opts   network.Options
	record func([]network.Redirect) error // writes the journal
	mu     lock.Mutex                     // guards the fields below

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

func newNICs(a Attachment, record func([]network.Redirect) error) nics {
	return nics{
		links: a.Links, opts: a.Options, record: record, mu: lock.New(),
		joints: a.Joints, sent: a.Guest, failed: map[int]failure{},
	}
}

// detach removes the redirects of all current interfaces, then the resources of the attachment (rest). It runs at the
// end of the pod, when nothing else uses n.
func (n *nics) detach(ctx context.Context, rest func(context.Context) error) error {
	if n.links != nil {
		if err := network.Remove(ctx, n.links, network.Wiring{Redirects: n.redirects()}); err != nil {
			return err
		}
	}
	return rest(ctx)
}

// redirects are those of all joints and some more.
func (n *nics) redirects(more ...network.Joint) (out []network.Redirect) {
	for _, j := range slices.Concat(n.joints, more) {
		if j.Index != 0 {
			out = append(out, j.Redirect())
		}
	}
	return out
}

// followNetwork begins to follow the namespace, where there is one to follow.
func (p *Pod) followNetwork(listen func() (LinkWatch, error)) {
	if listen == nil {
		return
	}
	w, err := listen()
	if err != nil {
		p.log.Error("changes of the pod's network will not reach the guest", "pod", p.opts.ID, "error", err)
		return
	}
	p.followLinks(w)
}

// followLinks keeps the VM's interfaces like the namespace's until the pod ends.
func (p *Pod) followLinks(w LinkWatch) {
	follow := func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = w.Close() })
		defer stop()
		var known []string
		for { // first of all what has changed since the boot
			known = p.follow1(ctx, known)
			if err := w.Wait(); err != nil {
				if ctx.Err() == nil {
					p.log.Error("changes of the pod's network do not reach the guest any more", "pod", p.opts.ID, "error",
						errors.Join(err, w.Close()))
				}
				return
			}
		}
	}
	if !p.life.spawn(follow) {
		_ = w.Close()
	}
}

// follow1 brings the VM up to date and logs what could not be done and is not known yet. It returns all of
// that.
func (p *Pod) follow1(ctx context.Context, known []string) []string {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Config.Runtime.CreateTimeout)
	defer cancel()
	var now []string
	for _, err := range p.syncNICs(ctx, plugFirst) {
		now = append(now, err.Error())
		if !slices.Contains(known, err.Error()) && !p.ended() {
			p.log.Warn("the pod's network has changed and its VM could not follow", "pod", p.opts.ID, "error", err)
		}
	}
	return now
}

// connectLate looks for interfaces that have come into a pod of one's namespace since its VM booted.
func (p *Pod) connectLate(ctx context.Context) error {
	p.mu.Lock()
	late := p.late
	p.late = false
	p.mu.Unlock()
	if !late {
		return nil
	}
	if err := errors.Join(p.syncNICs(ctx, spareFirst)...); err != nil {
		return fmt.Errorf("connect the network: %w", err)
	}
	return nil
}

// syncNICs makes the VM's interfaces and the guest's network those of the namespace. It goes on after an error, and
// each error names its interface.
func (p *Pod) syncNICs(ctx context.Context, pref preference) []error {
	n := &p.nics
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
		errs = append(errs, p.dropNIC(ctx, s, j))
	}
	maps.DeleteFunc(n.failed, func(index int, _ failure) bool {
		return !slices.ContainsFunc(c.Came, func(r network.Redirect) bool { return r.Index == index })
	})
	for _, r := range c.Came {
		errs = append(errs, p.addNIC(ctx, s, r, pref))
	}
	errs = append(errs, network.Unroutable(s), p.tellGuest(ctx, s))
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// addNIC gives the VM an interface for a link that came. One that failed is tried again when it has changed.
func (p *Pod) addNIC(ctx context.Context, s network.Snapshot, r network.Redirect, pref preference) error {
	n := &p.nics
	j := network.Joint{Link: r.Link, Index: r.Index, MAC: r.MAC, NIC: network.NIC{MAC: r.MAC, MTU: r.MTU}}
	link := network.GuestOf(s, []network.Joint{j}).String()
	if f, ok := n.failed[r.Index]; ok && f.link == link {
		return f.err
	}
	delete(n.failed, r.Index)
	err := p.joinNIC(ctx, s, r, j, pref == spareFirst && n.spare() >= 0)
	if (errdefs.IsFailedPrecondition(err) || errdefs.IsNotImplemented(err)) && pref == plugFirst && n.spare() >= 0 {
		err = p.joinNIC(ctx, s, r, j, true)
	}
	if err != nil {
		err = fmt.Errorf("interface %s came while the VM runs, and is not in it: %w", r.Link, err)
		n.failed[r.Index] = failure{link, err}
		return err
	}
	p.log.Info("interface connected", "pod", p.opts.ID, "interface", r.Link)
	return nil
}

// spare finds an interface that is joined with no link; -1: there is none.
func (n *nics) spare() int {
	return slices.IndexFunc(n.joints, func(j network.Joint) bool { return j.Index == 0 })
}

// joinNIC joins a link with an interface to spare, or with one that it plugs in, and configures that.
func (p *Pod) joinNIC(ctx context.Context, s network.Snapshot, r network.Redirect, j network.Joint,
	useSpare bool,
) (err error) {
	n := &p.nics
	var u undo.Stack
	defer u.RunOnError(&err)
	spare := n.spare()
	if useSpare {
		j.NIC, j.Path = n.joints[spare].NIC, n.joints[spare].Path
		r.Tap = j.NIC.Tap
	}
	j.NIC.Tap = r.Tap
	if err := n.record(n.redirects(j)); err != nil {
		return err
	}
	u.Push("take it out of the journal", func(context.Context) error { return n.record(n.redirects()) })
	if useSpare {
		err = network.Connect(ctx, n.links, r, &u)
	} else {
		j.NIC, j.Path, err = p.plugNIC(ctx, r, &u)
	}
	if err != nil {
		return err
	}
	g := network.GuestOf(s, []network.Joint{j})
	for _, i := range g.Interfaces {
		if err := p.updateInterface(ctx, i); err != nil {
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

// plugNIC makes a tap, joins it with the link and plugs it into the VM.
func (p *Pod) plugNIC(ctx context.Context, r network.Redirect, u *undo.Stack) (nic network.NIC,
	path string, err error,
) {
	vm, ok := p.vm.(hypervisor.NICPlugger)
	if !ok {
		return nic, "", fmt.Errorf("the VMM takes no interface while it runs; connect the network before the container is "+
			"created: %w", errdefs.ErrNotImplemented)
	}
	made, undone, err := network.Apply(ctx, p.nics.links, network.Wiring{Redirects: []network.Redirect{r}})
	if err != nil {
		return nic, "", err
	}
	u.Adopt(undone)
	nic = made[0]
	nic.Name = fmt.Sprintf("link%d", r.Index) // never used again in this namespace, unlike the link's name
	path, err = vm.PlugNIC(ctx, hypervisor.NIC{ID: nic.Name, MAC: nic.MAC, Tap: nic.Files, MTU: nic.MTU})
	if err != nil {
		return nic, "", err
	}
	u.Push("unplug interface "+r.Link, func(ctx context.Context) error { return vm.UnplugNIC(ctx, nic.Name) })
	return nic, path, nic.CloseFiles()
}

// dropNIC unplugs the interface of a link that has left, or keeps it as a spare. On an error nothing has changed, and
// the next change of the namespace retries it.
func (p *Pod) dropNIC(ctx context.Context, s network.Snapshot, j network.Joint) error {
	n := &p.nics
	err := p.unplugNIC(ctx, j)
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
		errs = append(errs, p.updateInterface(ctx, j.Idle()))
	} else {
		errs = append(errs, n.links.DelTap(ctx, j.NIC.Tap))
	}
	if err := errors.Join(append(errs, n.record(n.redirects()))...); err != nil {
		return fmt.Errorf("interface %s has left: %w", j.Link, err)
	}
	p.log.Info("interface disconnected", "pod", p.opts.ID, "interface", j.Link, "kept", spare)
	return nil
}

func (p *Pod) unplugNIC(ctx context.Context, j network.Joint) error {
	vm, ok := p.vm.(hypervisor.NICPlugger)
	if !ok {
		return errdefs.ErrNotImplemented
	}
	ctx, cancel := context.WithTimeout(ctx, unplugTime)
	defer cancel()
	return vm.UnplugNIC(ctx, j.NIC.Name)
}

// tellGuest brings addresses, routes and neighbours up to date.
func (p *Pod) tellGuest(ctx context.Context, s network.Snapshot) error {
	g := network.GuestOf(s, p.nics.joints)
	news, routes := g.Since(p.nics.sent)
	if err := p.configureGuest(ctx, news, routes); err != nil {
		return fmt.Errorf("the guest's network is not up to date: %w", err)
	}
	p.nics.sent = g
	return nil
}

func (p *Pod) updateInterface(ctx context.Context, i *types.Interface) error {
	return p.agent.Call(ctx, "interface "+i.GetName(), func(ctx context.Context) error {
		_, err := p.agent.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: i})
		return err
	})
}
