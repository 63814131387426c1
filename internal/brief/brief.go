// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package brief shortens errors for places with little room: a Kubernetes event holds about a
// thousand bytes, and the text of kubelet and containerd before ours takes a third of them.
package brief

import (
	"strings"
	"unicode/utf8"
)

// Most is how long an error may be that ends up in an event.
const Most = 720

// Error returns an error of at most Most bytes and the same class. The beginning has the failed operation,
// its phase and the reason, the end has the last lines of the guest's console: text is cut between them.
// Lines are joined, as an event is shown in one.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	const gap = " […] "
	if len(text) > Most {
		const head = Most * 3 / 5
		tail := len(text) - (Most - head - len(gap))
		text = strings.ToValidUTF8(text[:head], "") + gap + strings.ToValidUTF8(text[tail:], "")
	}
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "?")
	}
	return &shortened{text, err}
}

type shortened struct {
	text string
	err  error
}

func (s *shortened) Error() string { return s.text }
func (s *shortened) Unwrap() error { return s.err }
