// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
)

// Snapshot is the state of a network namespace at one moment.
type Snapshot struct {
	Links      []Link
	Addrs      []Addr
	Routes     []Route
	Rules      []Rule
	Neighbours []Neighbour
}

// Link is a network interface.
type Link struct {
	Index    int
	Name     string
	Kind     string // "veth", "macvlan", …; "device" for hardware
	Ethernet bool   // carries Ethernet frames
	Loopback bool
	Up       bool
	NoARP    bool
	MAC      string // "02:00:00:00:00:01", empty when there is none
	MTU      int
	Master   int // index of the bridge or bond that this is a port of, else 0
	Lower    int // index of the interface below it in the same namespace, else 0
	Ingress  Ingress
}

// Ingress is the state of a link's ingress hook.
type Ingress int

// The states of an ingress hook.
const (
	IngressFree    Ingress = iota // nothing
	IngressOurs                   // a redirect that an earlier VM left behind
	IngressForeign                // somebody else's qdisc or filter
)

// Addr is an IP address of a link. One with a peer has the full length; the way to the peer is a route.
type Addr struct {
	Link      int
	Prefix    netip.Prefix // address (not masked) and prefix length
	Permanent bool         // no lifetime: not learnt from a router or a lease
	DADFailed bool         // another host has it
}

// Route is an entry of a routing table.
type Route struct {
	Link    int          // 0 when the route has none (blackhole) or several (Multi)
	Dst     netip.Prefix // 0.0.0.0/0 or ::/0 for a default route
	Gateway netip.Addr
	Source  netip.Addr
	Scope   uint8 // RT_SCOPE_*
	OnLink  bool  // RTNH_F_ONLINK
	MTU     int
	Metric  int
	Table   int
	Type    uint8 // RTN_*
	Proto   int   // RTPROT_*
	Multi   []NextHop
}

// NextHop is one way of a multipath route.
type NextHop struct {
	Link    int
	Gateway netip.Addr
	OnLink  bool
}

// String is the route as `ip route` would begin it.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	return s
}

// Neighbour is an entry of the neighbour table.
type Neighbour struct {
	Link      int
	IP        netip.Addr
	MAC       string
	Permanent bool
	Flags     int // NTF_*
}

// Wiring is the result of Plan: the changes in the pod's namespace and the guest's configuration. It is plain data and
// may be stored.
type Wiring struct {
	Redirects []Redirect
	Guest     Guest `json:"-"`
	Skipped   []Skipped
}

// Redirect joins a link and a tap: every frame that enters one leaves by the other.
type Redirect struct {
	Link   string // the pod's interface
	Index  int    // its number
	Tap    string // the tap to be made
	MAC    string // of the link, which the guest's interface takes over
	MTU    int
	Queues int
	Stale  bool // the link's ingress hook holds our redirect of an earlier VM, which has to go first
}

// Skipped is something that the VM will not have, and why.
type Skipped struct{ What, Why string }
