// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/internal/rtnl"
	"github.com/coco-shim/coco/network/netns"
)

// A namespace changes while the VM runs: `docker network connect` brings a link, `disconnect` takes one,
// addresses and routes come and go. Handle.Watch reports that something has changed. The owner of the VM
// then takes a Snapshot, and Compare returns the differences: it is a pure function of the snapshot and of the
// Joints, the VM's interfaces. GuestOf is the configuration that the guest should have then, and Guest.Since the
// part of it that the guest does not have yet.

// Joint is an interface of the VM and the link that it is joined with.
type Joint struct {
	Link  string // name, and Index number, of the link
	Index int    // 0: with none, the interface is to spare
	MAC   string // of the link; the interface's own is NIC.MAC, and differs when it was there before the link
	NIC   NIC
	Path  string // the guest's PCI path of an interface that was plugged in, as the agent protocol has it
}

// Redirect returns the redirect between link and tap.
func (j Joint) Redirect() Redirect {
	return Redirect{Link: j.Link, Index: j.Index, Tap: j.NIC.Tap, MAC: j.MAC, MTU: j.NIC.MTU}
}

// is says whether a link is the joint's: one that got another name or MAC is another one, since the guest
// knows its interface by them.
func (j Joint) is(l Link) bool { return j.Index == l.Index && j.Link == l.Name && j.MAC == l.MAC }

// Joints returns the joints that Apply made for a wiring.
func Joints(w Wiring, nics []NIC) []Joint {
	var out []Joint
	for i, r := range w.Redirects {
		out = append(out, Joint{Link: r.Link, Index: r.Index, MAC: r.MAC, NIC: nics[i]}) //nolint:gosec // one for each redirect
	}
	return out
}

// Change has the differences between a namespace and the VM.
type Change struct {
	Left    []Joint    // links that are not there any more
	Came    []Redirect // links that the VM should have, each with a tap that does not exist yet
	Refused []error    // links that the pod needs and that the VM cannot have
}

// Compare decides what has to change. A link that is joined stays so when it goes down: its routes are gone
// meanwhile, and so are the guest's.
func Compare(s Snapshot, have []Joint, o Options) Change {
	var c Change
	there := map[int]bool{}
	chosen, refused, _ := choose(s, func(l Link) bool {
		for _, j := range have {
			if j.is(l) {
				there[j.Index] = true
				return true
			}
		}
		return false
	})
	for _, j := range have {
		if j.Index != 0 && !there[j.Index] {
			c.Left = append(c.Left, j)
		}
	}
	c.Refused = refused
	taken := map[string]bool{}
	for _, j := range have {
		taken[j.NIC.Tap] = true
	}
	for _, l := range chosen {
		i := 0
		for s.hasLink(tapName(i, l.Name)) || taken[tapName(i, l.Name)] {
			i++
		}
		taken[tapName(i, l.Name)] = true
		c.Came = append(c.Came, redirectOf(l, tapName(i, l.Name), o))
	}
	return c
}

// GuestOf is the configuration of a guest with the joints' interfaces.
func GuestOf(s Snapshot, joints []Joint) Guest {
	var chosen []Link
	by := map[string]Joint{}
	for _, j := range joints {
		for _, l := range s.Links {
			if j.is(l) {
				chosen = append(chosen, l)
				by[l.Name] = j
			}
		}
	}
	g, _ := guestConfig(s, chosen)
	for _, i := range g.Interfaces {
		j := by[i.GetName()]
		// The guest knows its interface by the MAC that it came with, and keeps it: switches learn it.
		i.HwAddr, i.DevicePath = j.NIC.MAC, j.Path
		i.Mtu = min(i.GetMtu(), uint64(max(j.NIC.MTU, 0)))
	}
	return g
}

// Idle returns the guest's configuration of an interface that has lost its link and cannot be unplugged: it has no
// address any more.
func (j Joint) Idle() *types.Interface {
	return &types.Interface{Device: j.Link, Name: j.Link, HwAddr: j.NIC.MAC, DevicePath: j.Path}
}

// Since returns the part of a configuration that differs from an older one. Interfaces and neighbours are updated one
// by one, routes and rules all together: newRoutes reports that they differ, possibly to none.
func (g Guest) Since(old Guest) (news Guest, newRoutes bool) {
	for _, i := range g.Interfaces {
		if !has(old.Interfaces, i) {
			news.Interfaces = append(news.Interfaces, i)
		}
	}
	for _, n := range g.Neighbours {
		if !has(old.Neighbours, n) {
			news.Neighbours = append(news.Neighbours, n)
		}
	}
	newRoutes = len(g.Routes) != len(old.Routes)
	for i := 0; !newRoutes && i < len(g.Routes); i++ {
		newRoutes = !proto.Equal(g.Routes[i], old.Routes[i])
	}
	newRoutes = newRoutes || len(g.Rules) != len(old.Rules)
	for i := 0; !newRoutes && i < len(g.Rules); i++ {
		newRoutes = !proto.Equal(g.Rules[i], old.Rules[i])
	}
	news.Routes, news.Rules = g.Routes, g.Rules
	return news, newRoutes
}

func has[M proto.Message](list []M, m M) bool {
	for _, o := range list {
		if proto.Equal(o, m) {
			return true
		}
	}
	return false
}

// A link is set up in several steps. Most set-ups take a few milliseconds; one that takes longer reaches
// the guest in parts.
const (
	quietTime = 100 * time.Millisecond
	settleMax = 2 * time.Second
)

// Watch hears of changes in a namespace. Close it.
type Watch struct{ w *rtnl.Watch }

// Watch begins to watch the namespace. It reports later changes, not earlier ones.
func (h *Handle) Watch() (*Watch, error) {
	var w Watch
	err := netns.Enter(h.ns, func() (err error) {
		w.w, err = rtnl.Subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &w, nil
}

// Wait waits for a change, and then until the namespace is quiet again. After Close it returns
// os.ErrClosed.
func (w *Watch) Wait() error { return w.w.Wait(quietTime, settleMax) }

// Close ends the listening, and a Wait.
func (w *Watch) Close() error { return w.w.Close() }
