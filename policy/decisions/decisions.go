// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package decisions keeps the last decisions about requests of the host, for people who look for a denial. A line has
// what was asked, for which container, and the sentence of the denial. It has nothing of a request but ids, and a
// denial has no secrets, so the log has none.
//
// The package is pure. It has no clock: the host sets that of the guest.
package decisions

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/coco-shim/coco/internal/words"
)

const (
	// Most bounds the log in bytes of text. Denials and allowed requests have half of it each; of each the oldest lines
	// go first.
	Most = 128 << 10
	// maxText bounds a denial, and maxID an id in a line.
	maxText, maxID = 1 << 10, 128
	// numbers is room for the numbers of a line.
	numbers = 64
	// share bounds the lines of each verdict: a quarter, since escapes of JSON may double a text. So requests that are
	// allowed for ever, such as those of probes, push no denial out.
	share = Most / 4
	// recent is how many of the last lines a repeated decision is looked for in.
	recent = 8
)

// Decision is one line of the log, or several that are the same and close together.
type Decision struct {
	N     uint64 `json:"n"`     // the first one's number, from 1
	Times uint64 `json:"times"` // how often it was decided
	about
}

// about has a call and its verdict.
type about struct {
	Kind      string `json:"kind"`                // name of the call
	Container string `json:"container,omitempty"` // id
	Exec      string `json:"exec,omitempty"`      // id
	Denied    string `json:"denied,omitempty"`    // the denial; empty: allowed
}

func (a about) size() int {
	return len(a.Kind) + len(a.Container) + len(a.Exec) + len(a.Denied) + numbers
}

func (a about) denied() bool { return a.Denied != "" }

// Log has the last decisions. A nil log keeps none. Its methods may be called at the same time.
type Log struct {
	mu    sync.Mutex
	lines []Decision   // guarded by mu; the oldest first
	bytes map[bool]int // guarded by mu; of lines, of denials (true) and of the others
	n     uint64       // guarded by mu; of all decisions
}

// Note adds a decision about a call; denied is nil if it was allowed.
func (l *Log) Note(kind, container, exec string, denied error) {
	if l == nil {
		return
	}
	a := about{Kind: words.Line(kind, maxID), Container: words.Line(container, maxID), Exec: words.Line(exec, maxID)}
	if denied != nil {
		a.Denied = words.Line(denied.Error(), maxText)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	for i := len(l.lines) - 1; i >= max(0, len(l.lines)-recent); i-- {
		if l.lines[i].about == a {
			l.lines[i].Times++
			return
		}
	}
	if l.bytes == nil {
		l.bytes = map[bool]int{}
	}
	l.lines = append(l.lines, Decision{N: l.n, Times: 1, about: a})
	l.bytes[a.denied()] += a.size()
	for l.bytes[a.denied()] > share {
		i := slices.IndexFunc(l.lines, func(d Decision) bool { return d.denied() == a.denied() })
		l.bytes[a.denied()] -= l.lines[i].size()
		l.lines = slices.Delete(l.lines, i, i+1)
	}
}

// Text returns the log in lines of JSON, one for each Decision.
func (l *Log) Text() string {
	l.mu.Lock()
	lines := append([]Decision(nil), l.lines...)
	l.mu.Unlock()
	var out strings.Builder
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for _, d := range lines {
		_ = enc.Encode(d) // a struct of texts and numbers has no error, nor has the builder
	}
	return out.String()
}

// String is the decision for people.
func (d Decision) String() string {
	s := strconv.FormatUint(d.N, 10) + " " + d.Kind
	if d.Container != "" {
		s += " " + d.Container
	}
	if d.Exec != "" && d.Exec != d.Container {
		s += " " + d.Exec
	}
	verdict := "allowed"
	if d.denied() {
		verdict = d.Denied
	}
	if d.Times > 1 {
		verdict = strconv.FormatUint(d.Times, 10) + " times " + verdict
	}
	return s + ": " + verdict
}

// Parse reads what Text has written. It comes from a guest, so texts are bounded and cleaned of characters that do not
// print.
func Parse(text string) (out []Decision, err error) {
	for line := range strings.Lines(text) {
		var d Decision
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			return nil, err
		}
		d.about = about{
			Kind: words.Line(d.Kind, maxID), Container: words.Line(d.Container, maxID), Exec: words.Line(d.Exec, maxID),
			Denied: words.Line(d.Denied, maxText),
		}
		out = append(out, d)
	}
	return out, nil
}
