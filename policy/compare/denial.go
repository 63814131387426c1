// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// Code says why a request was denied. Codes are stable; docs/policy.md has them as a table.
type Code string

// Codes of denials.
const (
	NoPolicy   Code = "no-policy"  // the guest must have a policy and has none
	Method     Code = "method"     // no policy allows this call
	Capability Code = "capability" // the call belongs to a capability that is closed
	Value      Code = "value"      // a field differs from what the policy pins
	ID         Code = "id"         // an id has a wrong form, is unknown or was used before
	Order      Code = "order"      // the call does not fit what has happened before
	Content    Code = "content"    // bytes of a copied file differ from what the policy pins
)

// MaxDenial is the longest text of a denial, in bytes.
const MaxDenial = 1024

const maxQuoted = 120 // of a value within it

// Denial is why a request is not allowed. It is an error.
type Denial struct {
	Code      Code
	Container string // its name in the policy, if it is about one
	Field     string // path of the field in the request
	Want, Got string
	Fix       string // the smallest change of the policy that would allow it, "" if none would
}

// Error is the text that people see. It has at most 1024 bytes, in one line.
func (d *Denial) Error() string {
	at := d.Field
	if d.Container != "" {
		at = d.Container + "/" + at
	}
	text := fmt.Sprintf("denied [%s] %s: expected %s, got %s", d.Code, at, d.Want, d.Got)
	if d.Fix != "" {
		text += "; allow with: " + d.Fix
	}
	if len(text) <= MaxDenial {
		return text
	}
	const more = "…"
	end := MaxDenial - len(more)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}

// Unwrap returns the class of the error.
func (d *Denial) Unwrap() error { return errdefs.ErrPermissionDenied }

// Quote shows a text of a request or of the policy, shortened, without control characters.
func Quote(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxQuoted {
		return fmt.Sprintf("%q", s)
	}
	end := maxQuoted
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%q… of %d bytes", s[:end], len(s))
}

// QuoteAll shows a list of texts, likewise.
func QuoteAll(list []string) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, s := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		if b.Len() > 2*maxQuoted {
			fmt.Fprintf(&b, "… %d in all", len(list))
			break
		}
		b.WriteString(Quote(s))
	}
	b.WriteByte(']')
	return b.String()
}
