// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package compare compares a request of the host with an entry of a policy, field by field, and says what differs. It
// knows nothing of what has happened before, except the facts of the pod that it is given: package engine has the
// state. It is pure.
package compare

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/coco-shim/coco/policy"
)

// Diffs is what a request and an entry of the policy do not have in common. Only the first difference is kept; their
// number tells which entry is nearest.
type Diffs struct {
	N     int
	First *Denial
	// Values that the host decides and that are fixed once the request is handled.
	Fields  map[string]string // by Field… constant: those known, then those of this request
	Volumes map[string]string // path in the guest, by the volume's name
	Drop    map[string]bool   // environment variables that the process does not get
	Root    string            // member of the policy that is compared: "containers[web]"
	// Early: no VM runs yet, so a request lacks its storages, devices, places of volumes and what other containers are.
	// They are not compared.
	Early bool
}

// Add notes a difference; fix is the change of the policy below root.
func (d *Diffs) Add(field, want, got, fix string) {
	d.N++
	if d.First != nil {
		return
	}
	if fix != "" {
		fix = d.Root + "." + fix
	}
	d.First = &Denial{Code: Value, Field: field, Want: want, Got: got, Fix: fix}
}

// more counts a difference that is not the first and so is not described. Most containers of a policy differ from a
// request in most of their fields, and describing a difference costs more than finding it.
func (d *Diffs) more() bool {
	if d.First == nil {
		return false
	}
	d.N++
	return true
}

// Same compares two values of a field that the policy has as member fix.
func Same[T comparable](d *Diffs, field, fix string, want, got T) {
	if want == got || d.more() {
		return
	}
	d.Add(field, Show(want), Show(got), fix+" = "+Show(got))
}

// Show shows a value: texts as Quote does. Texts within a structure are the host's as well, so control characters are
// escaped; two values that differ look different.
func Show(v any) string {
	if s, ok := v.(string); ok {
		return Quote(s)
	}
	quoted := strconv.Quote(fmt.Sprint(v))
	return quoted[1 : len(quoted)-1]
}

// Fixed compares a field whose value the policy cannot choose.
func Fixed[T comparable](d *Diffs, field string, want, got T) {
	if want != got && !d.more() {
		d.Add(field, Show(want), Show(got), "")
	}
}

// List compares two lists in their order.
func (d *Diffs) List(field, fix string, want, got []string) {
	if slices.Equal(want, got) || d.more() {
		return
	}
	if fix != "" {
		fix += " = " + QuoteAll(got)
	}
	for i, w := range want {
		if i < len(got) && w != got[i] {
			d.Add(Index(field, i), Quote(w), Quote(got[i]), fix)
			return
		}
	}
	d.Add(field, QuoteAll(want), QuoteAll(got), fix)
}

// Set compares two lists whose order has no meaning.
func (d *Diffs) Set(field, fix string, want, got []string) {
	if slices.Equal(want, got) {
		return
	}
	w, g := slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))
	if slices.Equal(w, g) || d.more() {
		return
	}
	for _, s := range g {
		if !slices.Contains(w, s) {
			d.Add(field, "no "+Quote(s), "it", fix+" with "+Quote(s))
			return
		}
	}
	for _, s := range w {
		if !slices.Contains(g, s) {
			d.Add(field, Quote(s), "none", fix+" without "+Quote(s))
			return
		}
	}
	d.Add(field, QuoteAll(w), QuoteAll(g), "") // something comes twice
}

// paths compares a list whose order has no meaning with required and optional ones.
func (d *Diffs) paths(field, fix string, want policy.Paths, got []string) {
	seen := map[string]bool{}
	for _, p := range got {
		switch {
		case seen[p]:
			d.Add(field, Quote(p)+" once", "it twice", "")
		case !slices.Contains(want.Required, p) && !slices.Contains(want.Optional, p):
			d.Add(field, "no "+Quote(p), "it", fix+".optional with "+Quote(p))
		}
		seen[p] = true
	}
	for _, p := range want.Required {
		if !seen[p] {
			d.Add(field, Quote(p), "none", fix+".required without "+Quote(p))
		}
	}
}

// Texts compares two maps.
func (d *Diffs) Texts(field, fix string, want, got map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(got)) {
		w, ok := want[k]
		if !ok {
			d.Add(Key(field, k), "none", Quote(got[k]), fix+" with "+Quote(k)+": "+Quote(got[k]))
		} else if w != got[k] {
			d.Add(Key(field, k), Quote(w), Quote(got[k]), Key(fix, k)+" = "+Quote(got[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[k]; !ok {
			d.Add(Key(field, k), Quote(want[k]), "none", fix+" without "+Quote(k))
		}
	}
}

// Allows says whether a text is one that v admits. A field that has no value yet takes it.
func (d *Diffs) Allows(v policy.Value, text string) bool {
	switch {
	case v.Is != nil:
		return *v.Is == text
	case len(v.OneOf) > 0:
		return slices.Contains(v.OneOf, text)
	case v.Type != "":
		return policy.HasSyntax(v.Type, text)
	}
	if known, ok := d.Fields[v.Field]; ok {
		return known == text
	}
	if !policy.HasSyntax(policy.FieldSyntax(v.Field), text) {
		return false
	}
	d.Fields[v.Field] = text
	return true
}

// Wanted describes what v admits.
func (d *Diffs) Wanted(v policy.Value) string {
	switch {
	case v.Is != nil:
		return Quote(*v.Is)
	case len(v.OneOf) > 0:
		return "one of " + QuoteAll(v.OneOf)
	case v.Type != "":
		return "a text of type " + v.Type
	}
	if known, ok := d.Fields[v.Field]; ok {
		return "the pod's " + v.Field + ", which is " + Quote(known)
	}
	return "the pod's " + v.Field
}

// hidden describes a value that must not be shown: it may be a secret that the policy does not have.
func hidden(text string) string { return "another text of " + strconv.Itoa(len(text)) + " bytes" }

// Index names an element of a list.
func Index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// Key names an entry of a map, without characters that cannot be printed.
func Key(field, k string) string {
	shown := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, k)
	if len(shown) > maxQuoted {
		shown = strings.ToValidUTF8(shown[:maxQuoted], "") + "…"
	}
	return field + "[" + shown + "]"
}
