// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"maps"
	"math/big"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// limitRange is what a LimitRange says of containers (k8s.io/api/core/v1 LimitRangeItem, with the API server's
// defaults).
type limitRange struct {
	name, namespace    string
	line, after        int // after so many pods of the text
	limits, requests   list
	least, most        list
	podLeast, podsMost list
}

var (
	limitRangeKeys = strings.Fields("apiVersion kind metadata spec status")
	limitItemKeys  = strings.Fields("type max min default defaultRequest maxLimitRequestRatio")
)

func (r *reader) limitRange(top map[string]*yaml.Node, n *yaml.Node) {
	for _, k := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains(limitRangeKeys, k) {
			r.bad(resolve(n), "LimitRange", "has an unknown key %.60q", k)
		}
	}
	meta := r.fields(top["metadata"], "LimitRange: metadata", metadataKeys)
	l := limitRange{line: resolve(n).Line, after: len(r.pods)}
	l.name = r.text(meta["name"], "LimitRange: name")
	l.namespace = r.text(meta["namespace"], "LimitRange: namespace")
	where := "LimitRange " + clip(l.name)
	spec := r.fields(top["spec"], where, []string{"limits"})
	for _, item := range r.items(spec["limits"], where+": limits") {
		f := r.fields(item, where+": limits", limitItemKeys)
		amounts := func(key string) list { return r.amounts(f[key], where+": "+key) }
		switch r.text(f["type"], where+": type") {
		case "Container":
			l.container(amounts("default"), amounts("defaultRequest"), amounts("min"), amounts("max"))
		case "Pod":
			l.podLeast, l.podsMost = amounts("min"), amounts("max")
		}
	}
	r.limits = append(r.limits, l)
}

// container sets what a container gets, as SetDefaults_LimitRangeItem completes it: a limit is the maximum, a request
// the limit, else the minimum.
func (l *limitRange) container(limits, requests, least, most list) {
	l.limits, l.requests, l.least, l.most = orEmpty(limits), orEmpty(requests), least, most
	fill(l.limits, most)
	fill(l.requests, l.limits)
	fill(l.requests, least)
}

func orEmpty(l list) list {
	if l == nil {
		return list{}
	}
	return maps.Clone(l)
}

// fill adds what is missing.
func fill(l, from list) {
	for k, q := range from {
		if l[k] == nil {
			l[k] = q
		}
	}
}

// limited is a pod's specification as the LimitRanges of its namespace leave it (LimitRanger of the API server).
// Pods that it would refuse are problems.
func (r *reader) limited(p *found) podSpec {
	s := p.spec
	s.containers, s.inits = slices.Clone(s.containers), slices.Clone(s.inits)
	for _, l := range r.limits {
		if l.namespace != p.Namespace {
			continue
		}
		if l.after > 0 && slices.Contains(r.pods[:min(l.after, len(r.pods))], p) {
			r.note("LimitRange %s comes after %s, and is applied to it: pods that were made before it have other sizes",
				clip(l.name), clip(p.String()))
		}
		for i := range s.containers {
			s.containers[i].resources = r.bound(l, p, s.containers[i].resources)
		}
		for i := range s.inits {
			s.inits[i].resources = r.bound(l, p, s.inits[i].resources)
		}
		total := podSpec{containers: s.containers, inits: s.inits}.sandbox(podSpec{})
		r.compare(l, p, "requests", "less", l.podLeast, total.requests, -1)
		r.compare(l, p, "limits", "more", l.podsMost, total.limits, 1)
	}
	return s
}

// bound completes the resources of a container and compares them with the bounds.
func (r *reader) bound(l limitRange, p *found, c resources) resources {
	out := c.withDefaults() // the API server's come first
	out.limits = orEmpty(c.limits)
	fill(out.limits, l.limits)
	fill(out.requests, l.requests)
	r.compare(l, p, "a request", "less", l.least, out.requests, -1)
	r.compare(l, p, "a limit", "more", l.most, out.limits, 1)
	return out
}

func (r *reader) compare(l limitRange, p *found, what, than string, bounds, have list, sign int) {
	for _, k := range slices.Sorted(maps.Keys(bounds)) {
		if q := have[k]; q != nil && q.Cmp(bounds[k]) == sign {
			r.bad(&yaml.Node{Line: l.line}, clip(p.String()), "has %s of %s %s than LimitRange %s allows: %s, not %s",
				what, clip(k), than, clip(l.name), decimalText(q), decimalText(bounds[k]))
		}
	}
}

func decimalText(q *big.Rat) string {
	return strings.TrimRight(strings.TrimRight(q.FloatString(9), "0"), ".")
}
