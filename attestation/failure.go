// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Failure is the first check that did not hold. Its code stands in docs/attestation.md.
type Failure struct {
	Check
	// Cause is the error of the step that was checked, such as that of a decoder; nil if two values differ.
	Cause error
}

// Error returns one line: field, expected, got, code, and what to do.
func (f *Failure) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: expected %s, got %s", f.Field, f.Expected, f.Got)
	if f.Cause != nil {
		fmt.Fprintf(&s, " (%v)", f.Cause)
	}
	fmt.Fprintf(&s, " [%s]", f.Code)
	if do := f.Code.Explain().Do; do != "" {
		s.WriteString(": " + do)
	}
	return s.String()
}

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Cause }

// Fail returns a failure of a step that has no two values: got is what was found.
func Fail(code Code, field, expected, got string, cause error) *Failure {
	return &Failure{Check: Check{Code: code, Field: field, Expected: expected, Got: got}, Cause: cause}
}

// FailureOf returns the failure in the chain of an error.
func FailureOf(err error) (*Failure, bool) {
	var f *Failure
	ok := errors.As(err, &f)
	return f, ok
}

// Class says what a failure means for the caller.
type Class string

// Classes of failures. The zero class belongs to no code.
const (
	// Malformed evidence is not the structure that its type promises.
	Malformed Class = "malformed"
	// Unsupported evidence has a version, product or algorithm that this verifier does not know.
	Unsupported Class = "unsupported"
	// Forged evidence is not proven to come from the vendor's hardware: signature, chain, binding or log do not hold.
	Forged Class = "forged"
	// Refused evidence is genuine and not what the caller expects.
	Refused Class = "refused"
	// Outdated evidence is genuine, and the platform's firmware is older than the caller accepts.
	Outdated Class = "outdated"
	// Unproven evidence could not be judged: collateral is missing, expired or not valid yet. A repeat may help.
	Unproven Class = "unproven"
	// Misused says that the caller's expectations are incomplete or contradict themselves.
	Misused Class = "misused"
)

// Code names a check.
type Code string

// Explanation says what a code means.
type Explanation struct {
	Class Class
	// Means is a sentence on the check.
	Means string
	// Do is what the operator can do about a failure.
	Do string
}

// Explain returns the explanation of a code. An unknown code has the zero explanation.
func (c Code) Explain() Explanation {
	for _, table := range tables {
		if e, ok := table[c]; ok {
			return e
		}
	}
	return Explanation{}
}

// Codes returns all codes, sorted.
func Codes() []Code {
	var out []Code
	for _, table := range tables {
		out = slices.AppendSeq(out, maps.Keys(table))
	}
	slices.Sort(out)
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
