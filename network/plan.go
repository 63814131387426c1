// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package network joins the interfaces of a pod's network namespace with the pod's VM.
//
// The namespace was set up (by CNI, Docker, nerdctl hooks) for a container that lives in it. Plan
// looks at a Snapshot and decides, without touching anything: each usable link gets a tap, all frames
// are redirected between the two in both directions, and the guest's interface takes over the link's MAC,
// MTU, addresses, routes and permanent neighbours. Apply executes the plan through a narrow interface
// to netlink and returns the tap descriptors for the VMM and the undo. Handle is the real netlink of one
// namespace; networktest has one in memory.
//
// The package does not choose addresses, does not run CNI and does not configure the guest: the agent
// does that, with the messages in Wiring.Guest. docs/decisions/network.md explains why tc redirects are used and not a
// bridge or macvtap, and why addresses stay on the pod's side.
package network

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containerd/errdefs"
)

// Models of how interfaces reach the VM.
const (
	ModelTC   = "tcfilter" // tap and tc redirect for each interface
	ModelNone = "none"     // the VM has no interface
)

// Options are the network's settings in the configuration.
type Options struct {
	Model  string // "" is ModelTC
	Queues int    // queue pairs of each interface; 0 is 1
}

// maxName is the length of an interface name without its final zero (IFNAMSIZ - 1).
const maxName = 15

// tapPrefix begins the names of our taps.
const tapPrefix = "coco"

// Plan decides how the namespace's interfaces reach the VM. A link that is not needed is skipped with a
// reason; a link that the pod's addresses hang on but that cannot be redirected is an error, because the
// pod would start without the network it was given. All such links are named at once.
func Plan(s Snapshot, o Options) (Wiring, error) {
	var w Wiring
	switch o.Model {
	case ModelNone:
		return w, nil
	case "", ModelTC:
	default:
		return w, fmt.Errorf("network model %q: %w; expected %q or %q", o.Model, errdefs.ErrInvalidArgument,
			ModelTC, ModelNone)
	}
	for _, l := range s.Links {
		// A tap lives as long as its VMM. Its VM has the interfaces of this namespace and would lose them.
		if isOurTap(l) {
			return w, fmt.Errorf("plan network: tap %s exists, so a VM runs in this network namespace already and would lose "+
				"its interfaces; "+
				"containers of different VMs cannot share one (--net container:…): %w", l.Name, errdefs.ErrAlreadyExists)
		}
	}
	chosen, errs, skipped := choose(s, nil)
	w.Skipped = skipped
	for i, l := range chosen {
		r := redirectOf(l, tapName(i, l.Name), o)
		if s.hasLink(r.Tap) {
			errs = append(errs, fmt.Errorf("link %s: a link %s exists, whose name its tap needs: %w", l.Name, r.Tap,
				errdefs.ErrAlreadyExists))
		}
		w.Redirects = append(w.Redirects, r)
	}
	if err := Unroutable(s); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return Wiring{}, fmt.Errorf("plan network: %w", errors.Join(errs...))
	}
	w.Guest, skipped = guestConfig(s, chosen)
	w.Skipped = append(w.Skipped, skipped...)
	return w, nil
}

func redirectOf(l Link, tap string, o Options) Redirect {
	return Redirect{
		Link: l.Name, Index: l.Index, Tap: tap, MAC: l.MAC, MTU: l.MTU, Queues: max(o.Queues, 1),
		Stale: l.Ingress == IngressOurs,
	}
}

// choose sorts the links: those for the VM, those that the pod needs and that cannot be given to it, those
// that are not needed. joined says which the VM has already; they are in none of the lists.
func choose(s Snapshot, joined func(Link) bool) (chosen []Link, refused []error, skipped []Skipped) {
	macs := map[string]string{}
	var rest []Link
	for _, l := range s.Links {
		if joined != nil && joined(l) {
			macs[l.MAC] = l.Name
			continue
		}
		rest = append(rest, l)
	}
	for _, l := range rest {
		why, fatal := unusable(l, s)
		if other, ok := macs[l.MAC]; why == "" && ok {
			why, fatal = fmt.Sprintf("has the same MAC %s as %s, and a guest tells interfaces apart by MAC", l.MAC, other), true
		}
		switch {
		case why != "" && fatal:
			refused = append(refused, fmt.Errorf("link %s (%s) %s: %w", l.Name, l.Kind, why, errdefs.ErrFailedPrecondition))
		case why != "":
			if !l.Loopback {
				skipped = append(skipped, Skipped{"link " + l.Name, why})
			}
		default:
			macs[l.MAC] = l.Name
			chosen = append(chosen, l)
		}
	}
	return chosen, refused, skipped
}

func (s Snapshot) hasLink(name string) bool {
	for _, l := range s.Links {
		if l.Name == name {
			return true
		}
	}
	return false
}

func (s Snapshot) linkName(index int) string {
	for _, l := range s.Links {
		if l.Index == index {
			return l.Name
		}
	}
	return fmt.Sprintf("#%d", index)
}

// unusable says why a link cannot be given to the VM, or "". fatal: the pod needs it.
func unusable(l Link, s Snapshot) (why string, fatal bool) {
	switch {
	case l.Loopback:
		return "is the loopback, which the guest has itself", false
	case isOurTap(l):
		return "is the tap of a VM", false
	case !l.Up:
		return "is down", false
	case l.Master != 0:
		return fmt.Sprintf("is a port of %s", s.linkName(l.Master)), false
	case l.Lower != 0 && l.Kind != "veth": // a veth pair in one namespace names its peer there
		return fmt.Sprintf("lies above %s, whose frames the guest gets whole", s.linkName(l.Lower)), s.hasAddress(l)
	case !l.Ethernet:
		return "does not carry Ethernet frames, which a tap needs", s.hasAddress(l)
	case !unicastMAC(l.MAC):
		return fmt.Sprintf("has no usable MAC address (%q)", l.MAC), s.hasAddress(l)
	case l.Ingress == IngressForeign:
		return "has an ingress qdisc of somebody else's; coco needs that hook for its redirect", true
	}
	return "", false
}

// hasAddress says whether the link has an address that somebody gave it.
func (s Snapshot) hasAddress(l Link) bool {
	for _, a := range s.Addrs {
		if a.Link == l.Index && !a.Prefix.Addr().IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

func isOurTap(l Link) bool {
	rest, ok := strings.CutPrefix(l.Name, tapPrefix)
	n, _, found := strings.Cut(rest, "_")
	return ok && found && n != "" && strings.Trim(n, "0123456789") == "" && l.Kind == "tuntap"
}

func unicastMAC(s string) bool {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return false
	}
	return mac.String() != "00:00:00:00:00:00"
}

// tapName is the same for the same namespace at every start: coco0_eth0.
func tapName(i int, link string) string {
	name := fmt.Sprintf("%s%d_%s", tapPrefix, i, link)
	return name[:min(len(name), maxName)]
}
