// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
)

// joint0 is eth0 as it was joined at boot.
var joint0 = Joint{Link: "eth0", Index: 2, MAC: eth0.MAC, NIC: NIC{
	Name: "eth0", Tap: "coco0_eth0",
	MAC: eth0.MAC, MTU: 1450,
}}

// spare is what a pod of one without a network has.
var spare = Joint{NIC: NIC{Tap: standbyTap, MAC: "02:00:00:00:00:99", MTU: 1500}}

func tap(index int, name string) Link {
	return Link{Index: index, Name: name, Kind: kindTap, Ethernet: true, Up: true, MAC: "02:ff:00:00:00:01", MTU: 1500}
}

// running is cni's namespace with a VM in it and further links.
func running(links ...Link) Snapshot {
	s := cni()
	s.Links[1].Ingress = IngressOurs
	s.Links = append(append(s.Links, tap(9, "coco0_eth0")), links...)
	return s
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name          string
		have          []Joint
		now           Snapshot
		left, refused []string
		came          []Redirect
	}{
		{name: "nothing has changed", have: []Joint{joint0}, now: running()},
		{
			name: "a link came", have: []Joint{joint0}, now: running(net1),
			came: []Redirect{{Link: "net1", Index: 3, Tap: "coco0_net1", MAC: net1.MAC, MTU: 9000, Queues: 2}},
		},
		{
			name: "two came, and a tap's name is taken", have: []Joint{joint0},
			now: running(net1, with(net1, func(l *Link) { l.Index, l.Name, l.MAC = 4, "net2", "02:00:00:00:00:03" }),
				tap(10, "coco0_net1")),
			came: []Redirect{
				{Link: "net1", Index: 3, Tap: "coco1_net1", MAC: net1.MAC, MTU: 9000, Queues: 2},
				{Link: "net2", Index: 4, Tap: "coco0_net2", MAC: "02:00:00:00:00:03", MTU: 9000, Queues: 2},
			},
		},
		{name: "one that is not up is waited for", have: []Joint{joint0}, now: running(with(net1, func(l *Link) {
			l.Up = false
		}))},
		{
			name: "one of a MAC that the VM has", have: []Joint{joint0},
			now:     running(with(net1, func(l *Link) { l.MAC = eth0.MAC })),
			refused: []string{"link net1 (macvlan) has the same MAC"},
		},
		{
			name: "one whose hook is somebody else's", have: []Joint{joint0},
			now:     running(with(net1, func(l *Link) { l.Ingress = IngressForeign })),
			refused: []string{"link net1 (macvlan) has an ingress qdisc"},
		},
		{
			name: "the link has left", have: []Joint{joint0}, now: Snapshot{Links: []Link{lo, tap(9, "coco0_eth0")}},
			left: []string{"eth0"},
		},
		{
			name: "the link went down", have: []Joint{joint0},
			now: Snapshot{Links: []Link{lo, with(eth0, func(l *Link) { l.Up = false })}},
		},
		{
			name: "the link got another name", have: []Joint{joint0},
			now: Snapshot{Links: []Link{lo, with(eth0, func(l *Link) {
				l.Name, l.Ingress = "lan", IngressOurs
			}), tap(9, "coco0_eth0")}},
			left: []string{"eth0"},
			came: []Redirect{{Link: "lan", Index: 2, Tap: "coco0_lan", MAC: eth0.MAC, MTU: 1450, Queues: 2, Stale: true}},
		},
		{
			name: "another link of the name", have: []Joint{joint0},
			now:  Snapshot{Links: []Link{lo, with(eth0, func(l *Link) { l.Index, l.MAC = 7, net1.MAC }), tap(9, "coco0_eth0")}},
			left: []string{"eth0"},
			came: []Redirect{{Link: "eth0", Index: 7, Tap: "coco1_eth0", MAC: net1.MAC, MTU: 1450, Queues: 2}},
		},
		{
			name: "the first link of a pod without network", have: []Joint{spare},
			now:  Snapshot{Links: []Link{lo, eth0, tap(9, standbyTap)}},
			came: []Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: eth0.MAC, MTU: 1450, Queues: 2}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Compare(tt.now, tt.have, Options{Queues: 2})
			var left []string
			for _, j := range c.Left {
				left = append(left, j.Link)
			}
			if d := cmp.Diff(tt.left, left); d != "" {
				t.Errorf("left (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.came, c.Came); d != "" {
				t.Errorf("came (-want +got):\n%s", d)
			}
			if len(c.Refused) != len(tt.refused) {
				t.Fatalf("refused = %v, want %q", c.Refused, tt.refused)
			}
			for i, want := range tt.refused {
				if got := c.Refused[i].Error(); !strings.HasPrefix(got, want) {
					t.Errorf("refused: %s, want %s…", got, want)
				}
			}
		})
	}
}

func TestTheGuestOfAnUnchangedPodIsThatOfItsStart(t *testing.T) {
	w, err := Plan(cni(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	joints := Joints(w, []NIC{joint0.NIC})
	got := GuestOf(running(), joints)
	if d := cmp.Diff(w.Guest, got, protocmp.Transform()); d != "" {
		t.Errorf("GuestOf() (-at start +later):\n%s", d)
	}
	news, routes := got.Since(w.Guest)
	if len(news.Interfaces)+len(news.Neighbours) > 0 || routes {
		t.Errorf("news without a change: %s, routes %t", news, routes)
	}
}

func TestNewsOfTheGuest(t *testing.T) {
	was := GuestOf(running(), []Joint{joint0})
	for _, tt := range []struct {
		name   string
		change func(s *Snapshot)
		want   string
		routes bool
	}{
		{"an address", func(s *Snapshot) {
			s.Addrs = append(s.Addrs, Addr{Link: 2, Prefix: pfx("10.1.0.3/24"), Permanent: true})
		}, "eth0 02:00:00:00:00:01 mtu 1450 10.1.0.2/24 fd00::2/64 fe80::ff:fe00:1/64 10.1.0.3/24", false},
		{"an mtu", func(s *Snapshot) {
			s.Links[1].MTU = 1300
		}, "eth0 02:00:00:00:00:01 mtu 1300 10.1.0.2/24 fd00::2/64 fe80::ff:fe00:1/64", false},
		{"an mtu that the VM's interface has not", func(s *Snapshot) { s.Links[1].MTU = 9000 }, "", false},
		{"a route", func(s *Snapshot) { s.Routes = append(s.Routes, mainRoute(2, "10.7.0.0/16", "10.1.0.1")) }, "", true},
		{"another way", func(s *Snapshot) { s.Routes[0].Gateway = ip("10.1.0.254") }, "", true},
		{"no routes", func(s *Snapshot) { s.Routes = nil }, "", true},
		{"a neighbour", func(s *Snapshot) {
			s.Neighbours = append(s.Neighbours, Neighbour{
				Link: 2, IP: ip("10.1.0.77"), MAC: "02:00:00:00:00:77",
				Permanent: true,
			})
		}, "10.1.0.77 lladdr 02:00:00:00:00:77", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := running()
			tt.change(&s)
			news, routes := GuestOf(s, []Joint{joint0}).Since(was)
			news.Routes = nil
			if got := news.String(); got != tt.want || routes != tt.routes {
				t.Errorf("news = %q, routes %t; want %q, %t", got, routes, tt.want, tt.routes)
			}
		})
	}
}
