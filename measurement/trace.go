// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measurement

import (
	"fmt"
	"slices"
	"strings"
)

// Step is one extension of a measurement: a page of an SNP launch, a page of a TD's build, an
// event of a run-time register.
type Step struct {
	// Register names the chain that is extended: "launch", "mrtd", "rtmr0" and so on.
	Register string `json:"register"`
	// Source says where the step comes from: "firmware", "metadata 3", "vmsa 0", an event's name.
	Source string `json:"source"`
	// Kind is the type of page or event, as the specification calls it.
	Kind string `json:"kind"`
	// GPA is the guest physical address that is measured with the content; 0 for events.
	GPA uint64 `json:"gpa"`
	// Size is the number of bytes covered.
	Size uint64 `json:"size"`
	// Content is the digest of what was measured; empty where only type and address count.
	Content Digest `json:"content,omitempty"`
	// After is the value of the register after the step; empty where the register is a running
	// hash without intermediate values (MRTD, SEV, SEV-ES).
	After Digest `json:"after,omitempty"`
	// Note explains the content for people.
	Note string `json:"note,omitempty"`
}

// String returns the step as one line of text.
func (s Step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-7s %-10s", s.Register, s.Kind)
	if s.Size != 0 || s.GPA != 0 {
		fmt.Fprintf(&b, " %#014x+%#x", s.GPA, s.Size)
	}
	if len(s.Content) > 0 {
		fmt.Fprintf(&b, " content %s", s.Content)
	}
	if len(s.After) > 0 {
		fmt.Fprintf(&b, " -> %s", s.After)
	}
	fmt.Fprintf(&b, " (%s", s.Source)
	if s.Note != "" {
		fmt.Fprintf(&b, ": %s", s.Note)
	}
	b.WriteString(")")
	return b.String()
}

// Trace is the ordered list of steps that led to a digest. A nil *Trace records nothing, so that
// callers who want only the digest pay nothing for it.
type Trace struct {
	Steps []Step `json:"steps"`
}

// Add records a step; on a nil trace it does nothing.
func (t *Trace) Add(s Step) {
	if t == nil {
		return
	}
	s.Content, s.After = slices.Clone(s.Content), slices.Clone(s.After)
	t.Steps = append(t.Steps, s)
}

// Change says how a step of one trace relates to the other trace.
type Change string

// The ways in which two traces can differ at a step.
const (
	OnlyInA Change = "only in A"       // the step is missing from B
	OnlyInB Change = "only in B"       // the step is missing from A
	Content Change = "content differs" // same place and kind, other content
	Kind    Change = "kind differs"    // same place, other kind of page or event
	Moved   Change = "order differs"   // same step, at another place in the order
)

// Difference is one reason why two digests differ.
type Difference struct {
	Change Change `json:"change"`
	A      *Step  `json:"a,omitempty"`
	B      *Step  `json:"b,omitempty"`
}

// String returns the difference as one or two lines of text.
func (d Difference) String() string {
	switch {
	case d.A != nil && d.B != nil:
		return fmt.Sprintf("%s:\n  A %s\n  B %s", d.Change, d.A, d.B)
	case d.A != nil:
		return fmt.Sprintf("%s: %s", d.Change, d.A)
	default:
		return fmt.Sprintf("%s: %s", d.Change, d.B)
	}
}

// place identifies a step by register, source and address, independent of its content. Steps that share
// register, source and address (the processors' pages, repeated events) differ by occurrence.
type place struct {
	register, source string
	gpa              uint64
	occurrence       int
}

func places(t *Trace) []place {
	if t == nil {
		return nil
	}
	seen := make(map[place]int, len(t.Steps))
	out := make([]place, len(t.Steps))
	for i, s := range t.Steps {
		p := place{register: s.Register, source: s.Source, gpa: s.GPA}
		n := seen[p]
		seen[p] = n + 1
		p.occurrence = n
		out[i] = p
	}
	return out
}

// Diff returns why two traces lead to different digests: steps that only one of them has, steps
// with other kind or content, and steps in another order. It is empty exactly if both traces
// measure the same things in the same order.
func Diff(a, b *Trace) []Difference {
	pa, pb := places(a), places(b)
	inB := make(map[place]int, len(pb))
	for i, p := range pb {
		inB[p] = i
	}
	var out []Difference
	common := make([]int, 0, len(pa)) // index in B of every common step, in A's order
	taken := make([]bool, len(pb))
	for i, p := range pa {
		j, ok := inB[p]
		if !ok {
			out = append(out, Difference{Change: OnlyInA, A: &a.Steps[i]})
			continue
		}
		taken[j] = true
		common = append(common, j)
		sa, sb := &a.Steps[i], &b.Steps[j]
		switch {
		case sa.Kind != sb.Kind:
			out = append(out, Difference{Change: Kind, A: sa, B: sb})
		case sa.Size != sb.Size || !slices.Equal(sa.Content, sb.Content):
			out = append(out, Difference{Change: Content, A: sa, B: sb})
		}
	}
	for j := range pb {
		if !taken[j] {
			out = append(out, Difference{Change: OnlyInB, B: &b.Steps[j]})
		}
	}
	return append(out, moved(b, common)...)
}

// moved reports the steps of B that are not in the order of A: those outside a longest run that both share.
func moved(b *Trace, common []int) []Difference {
	keep := longestIncreasing(common)
	var out []Difference
	for i, j := range common {
		if !keep[i] {
			out = append(out, Difference{Change: Moved, B: &b.Steps[j]})
		}
	}
	return out
}

// longestIncreasing marks the members of one longest increasing subsequence of s.
func longestIncreasing(s []int) []bool {
	prev := make([]int, len(s))
	var tails []int // tails[k]: index of the smallest last member of a run of length k+1
	for i, v := range s {
		k, _ := slices.BinarySearchFunc(tails, v, func(t, v int) int { return s[t] - v })
		prev[i] = -1
		if k > 0 {
			prev[i] = tails[k-1]
		}
		if k == len(tails) {
			tails = append(tails, i)
		} else {
			tails[k] = i
		}
	}
	keep := make([]bool, len(s))
	if len(tails) > 0 {
		for i := tails[len(tails)-1]; i >= 0; i = prev[i] {
			keep[i] = true
		}
	}
	return keep
}
