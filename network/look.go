// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
)

// Snapshot reads the namespace.
func (h *Handle) Snapshot(ctx context.Context) (Snapshot, error) {
	var s Snapshot
	if err := h.lookAtLinks(ctx, &s); err != nil {
		return Snapshot{}, err
	}
	addrs, err := h.nl.List(ctx, "addresses", unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return Snapshot{}, err
	}
	for _, m := range addrs {
		if a, ok := parseAddr(m.Body); ok {
			s.Addrs = append(s.Addrs, a)
		}
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.nl.List(ctx, "routes", unix.RTM_GETROUTE, header(family, unix.SizeofRtMsg))
		if err != nil {
			return Snapshot{}, err
		}
		for _, m := range routes {
			if r, ok := parseRoute(m.Body); ok {
				s.Routes = append(s.Routes, r)
			}
		}
		rules, err := h.nl.List(ctx, "rules", unix.RTM_GETRULE, header(family, sizeofRule))
		// a kernel without them has none
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return Snapshot{}, err
		}
		for _, m := range rules {
			if r, ok := parseRule(m.Body); ok {
				s.Rules = append(s.Rules, r)
			}
		}
		neighbours, err := h.nl.List(ctx, "neighbours", unix.RTM_GETNEIGH, header(family, unix.SizeofNdMsg))
		if err != nil {
			return Snapshot{}, err
		}
		for _, m := range neighbours {
			if n, ok := parseNeighbour(m.Body); ok {
				s.Neighbours = append(s.Neighbours, n)
			}
		}
	}
	return s, nil
}

// header is a request's fixed part of which only the address family matters.
func header(family byte, size int) []byte {
	b := make([]byte, size)
	b[0] = family
	return b
}

// lookAtLinks reads the links, which of them lie on another, and what hangs at their ingress hooks.
func (h *Handle) lookAtLinks(ctx context.Context, s *Snapshot) error {
	links, err := h.nl.List(ctx, "links", unix.RTM_GETLINK, linkHeader(0, 0, 0))
	if err != nil {
		return err
	}
	lower := map[int]int{}
	for _, m := range links {
		if l, below, ok := parseLink(m.Body); ok {
			s.Links = append(s.Links, l)
			lower[l.Index] = below
		}
	}
	qdiscs, err := h.nl.List(ctx, "queueing disciplines", unix.RTM_GETQDISC, tcHeader(0, 0, 0, 0))
	if err != nil {
		return err
	}
	for i := range s.Links {
		l := &s.Links[i]
		for _, o := range s.Links {
			if o.Index == lower[l.Index] && o.Index != l.Index {
				l.Lower = o.Index
			}
		}
		if l.Ingress, err = h.ingress(ctx, *l, qdiscs); err != nil {
			return err
		}
	}
	return nil
}

// ingress looks at a link's ingress hook. Only an ingress qdisc whose every filter is of our
// priority is ours.
func (h *Handle) ingress(ctx context.Context, l Link, qdiscs []rtnl.Message) (Ingress, error) {
	for _, m := range qdiscs {
		q, ok := parseTC(m.Body)
		if !ok || q.link != l.Index {
			continue
		}
		switch q.kind {
		case "clsact":
			return IngressForeign, nil
		case "ingress":
			filters, err := h.nl.List(ctx, "filters of "+l.Name, unix.RTM_GETTFILTER, tcHeader(l.Index, 0, ingressHandle, 0))
			if err != nil {
				return 0, err
			}
			for _, m := range filters {
				if f, ok := parseTC(m.Body); !ok || f.priority != priority {
					return IngressForeign, nil
				}
			}
			return IngressOurs, nil
		}
	}
	return IngressFree, nil
}
