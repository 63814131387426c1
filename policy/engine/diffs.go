// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/policy"
)

// diffs is what a request and an entry of the policy do not have in common. Only the first difference is kept; their
// number tells which entry is nearest.
type diffs struct {
	n     int
	first *Denial
	// Values that the host decides and that are fixed once the request is handled.
	fields  map[string]string // by Field… constant: those known, then those of this request
	volumes map[string]string // path in the guest, by the volume's name
	drop    map[string]bool   // environment variables that the process does not get
	root    string            // member of the policy that is compared: "containers[web]"
}

// add notes a difference; fix is the change of the policy below root.
func (d *diffs) add(field, want, got, fix string) {
	d.n++
	if d.first != nil {
		return
	}
	if fix != "" {
		fix = d.root + "." + fix
	}
	d.first = &Denial{Code: Value, Field: field, Want: want, Got: got, Fix: fix}
}

// same compares two values of a field that the policy has as member fix.
func same[T comparable](d *diffs, field, fix string, want, got T) {
	if want == got {
		return
	}
	d.add(field, show(want), show(got), fix+" = "+show(got))
}

func show(v any) string {
	if s, ok := v.(string); ok {
		return quote(s)
	}
	return fmt.Sprint(v)
}

// fixed compares a field whose value the policy cannot choose.
func fixed[T comparable](d *diffs, field string, want, got T) {
	if want != got {
		d.add(field, show(want), show(got), "")
	}
}

// list compares two lists in their order.
func (d *diffs) list(field, fix string, want, got []string) {
	if slices.Equal(want, got) {
		return
	}
	if fix != "" {
		fix += " = " + quoteAll(got)
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			d.add(index(field, i), quote(want[i]), quote(got[i]), fix)
			return
		}
	}
	d.add(field, quoteAll(want), quoteAll(got), fix)
}

// set compares two lists whose order has no meaning.
func (d *diffs) set(field, fix string, want, got []string) {
	w, g := slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))
	if slices.Equal(w, g) {
		return
	}
	for _, s := range g {
		if !slices.Contains(w, s) {
			d.add(field, "no "+quote(s), "it", fix+" with "+quote(s))
			return
		}
	}
	for _, s := range w {
		if !slices.Contains(g, s) {
			d.add(field, quote(s), "none", fix+" without "+quote(s))
			return
		}
	}
	d.add(field, quoteAll(w), quoteAll(g), "") // something comes twice
}

// paths compares a list whose order has no meaning with required and optional ones.
func (d *diffs) paths(field, fix string, want policy.Paths, got []string) {
	seen := map[string]bool{}
	for _, p := range got {
		switch {
		case seen[p]:
			d.add(field, quote(p)+" once", "it twice", "")
		case !slices.Contains(want.Required, p) && !slices.Contains(want.Optional, p):
			d.add(field, "no "+quote(p), "it", fix+".optional with "+quote(p))
		}
		seen[p] = true
	}
	for _, p := range want.Required {
		if !seen[p] {
			d.add(field, quote(p), "none", fix+".required without "+quote(p))
		}
	}
}

// texts compares two maps.
func (d *diffs) texts(field, fix string, want, got map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(got)) {
		w, ok := want[k]
		if !ok {
			d.add(key(field, k), "none", quote(got[k]), fix+" with "+quote(k)+": "+quote(got[k]))
		} else if w != got[k] {
			d.add(key(field, k), quote(w), quote(got[k]), key(fix, k)+" = "+quote(got[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[k]; !ok {
			d.add(key(field, k), quote(want[k]), "none", fix+" without "+quote(k))
		}
	}
}

// allows says whether a text is one that v admits. A field that has no value yet takes it.
func (d *diffs) allows(v policy.Value, text string) bool {
	switch {
	case v.Is != nil:
		return *v.Is == text
	case len(v.OneOf) > 0:
		return slices.Contains(v.OneOf, text)
	case v.Type != "":
		return policy.HasSyntax(v.Type, text)
	}
	if known, ok := d.fields[v.Field]; ok {
		return known == text
	}
	if !policy.HasSyntax(policy.FieldSyntax(v.Field), text) {
		return false
	}
	d.fields[v.Field] = text
	return true
}

// wanted describes what v admits.
func (d *diffs) wanted(v policy.Value) string {
	switch {
	case v.Is != nil:
		return quote(*v.Is)
	case len(v.OneOf) > 0:
		return "one of " + quoteAll(v.OneOf)
	case v.Type != "":
		return "a text of type " + v.Type
	}
	if known, ok := d.fields[v.Field]; ok {
		return "the pod's " + v.Field + ", which is " + quote(known)
	}
	return "the pod's " + v.Field
}

// hidden describes a value that must not be shown: it may be a secret that the policy does not have.
func hidden(text string) string { return "another text of " + strconv.Itoa(len(text)) + " bytes" }

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func key(field, k string) string {
	if len(k) > maxQuoted {
		k = k[:maxQuoted] + "…"
	}
	return field + "[" + strings.ToValidUTF8(k, "?") + "]"
}
