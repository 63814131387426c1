// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"maps"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/signed"
)

// signatures are the owner's statements about a tree. Kubelet's volumes have each state of their files in a directory
// "..TIME" with a signature of its own, and the link "..data" to the state that counts. Other trees have one state,
// whose name is "".
//
// A signature comes before the files that it is about, and each file is compared with it at once. So a container that
// has the tree never sees a file that was not signed. The counter never falls.
type signatures struct {
	states  map[string]signed.Statement
	current signed.Statement // of the state that counts
}

// stateOf divides the path of a file or link into its state and the rest.
func stateOf(name string) (state, rest string) {
	first, rest, deep := strings.Cut(name, "/")
	if deep && strings.HasPrefix(first, "..") && first != contract.KubeletData {
		return first, rest
	}
	return "", name
}

// readSigned reads the signatures of a tree that no container has yet, and finds the state that counts.
func (t *tree) readSigned() (signatures, *compare.Denial) {
	s := signatures{states: map[string]signed.Statement{}}
	for name, e := range t.entries {
		state, rest := stateOf(name)
		if rest != signed.FileName || e.digest == "" {
			continue
		}
		st, d := s.read(t, name, e)
		if d != nil {
			return s, d
		}
		s.states[state] = st
	}
	at := t.entries[contract.KubeletData].link
	now, ok := s.states[at]
	if !ok {
		return s, missing(at)
	}
	s.current = now
	return s, nil
}

// checkSigned compares all of a tree that no container has yet.
func (t *tree) checkSigned() *compare.Denial {
	if len(t.signed.states) > 0 { // another container has it
		return nil
	}
	s, d := t.readSigned()
	if d != nil {
		return d
	}
	for name, e := range t.entries {
		if d := s.verify(t, name, e); d != nil {
			return d
		}
	}
	return s.whole(t, t.entries[contract.KubeletData].link)
}

// verify compares one file or link with the signature of its state.
func (s signatures) verify(t *tree, name string, e entry) *compare.Denial {
	state, rest := stateOf(name)
	switch {
	case e.digest == "":
		return s.link(t, name, e)
	case rest == signed.FileName:
		_, d := s.read(t, name, e)
		return d
	}
	st, ok := s.states[state]
	if !ok {
		return missing(state)
	}
	if want, ok := st.Files[rest]; !ok || want != e.digest {
		return &compare.Denial{
			Code: compare.Content, Field: "file " + compare.Quote(rest), Want: "one that the owner has signed",
			Got: "other content of " + compare.Show(e.size) + " bytes",
		}
	}
	return nil
}

func missing(state string) *compare.Denial {
	return &compare.Denial{
		Code: compare.Content, Field: "file " + compare.Quote(signed.FileName), Want: "it before the files that it is about",
		Got: "none in " + compare.Quote("./"+state),
	}
}

// read reads a signature and compares its name and counter.
func (s signatures) read(t *tree, name string, e entry) (signed.Statement, *compare.Denial) {
	d := &compare.Denial{Code: compare.Content, Field: "file " + compare.Quote(name)}
	st, err := signed.Verify(e.text, t.rule.Keys)
	low := max(t.rule.Counter, s.current.Counter)
	switch {
	case err != nil:
		d.Want, d.Got = "a signature by a key of the policy", err.Error()
	case st.Name != t.name:
		d.Want, d.Got = "a signature for "+compare.Quote(t.name), "one for "+compare.Quote(st.Name)
	case st.Counter < low:
		d.Want, d.Got = "a counter of at least "+compare.Show(low), compare.Show(st.Counter)
	case s.current.Files != nil && st.Counter == s.current.Counter && !maps.Equal(st.Files, s.current.Files):
		d.Want, d.Got = "a higher counter for other files", compare.Show(st.Counter)
	default:
		return st, nil
	}
	return st, d
}

// link compares a link: "..data" leads to a state that is complete, and those beside it lead to its files.
func (s signatures) link(t *tree, name string, e entry) *compare.Denial {
	if name == contract.KubeletData && strings.HasPrefix(e.link, "..") {
		st, ok := s.states[e.link]
		if !ok {
			return missing(e.link)
		}
		if st.Counter < s.current.Counter {
			return &compare.Denial{
				Code: compare.Content, Field: "link " + compare.Quote(name),
				Want: "a state with a counter of at least " + compare.Show(s.current.Counter), Got: compare.Show(st.Counter),
			}
		}
		return s.whole(t, e.link)
	}
	if e.link == contract.KubeletData+"/"+name && s.names(name) {
		return nil
	}
	return &compare.Denial{
		Code: compare.Content, Field: "link " + compare.Quote(name), Want: "no link but kubelet's",
		Got: "one to " + compare.Quote(e.link),
	}
}

// names says whether a state has a file of this name, or below it.
func (s signatures) names(name string) bool {
	if name == signed.FileName {
		return true
	}
	for _, st := range s.states {
		for p := range st.Files {
			if p == name || strings.HasPrefix(p, name+"/") {
				return true
			}
		}
	}
	return false
}

// whole compares the files of a state with its signature: none may be missing.
func (s signatures) whole(t *tree, state string) *compare.Denial {
	for p, digest := range s.states[state].Files {
		at := p
		if state != "" {
			at = state + "/" + p
		}
		if t.entries[at].digest != digest {
			return &compare.Denial{
				Code: compare.Content, Field: "file " + compare.Quote(p), Want: "the file that the owner has signed", Got: "none",
			}
		}
	}
	return nil
}

// noteSigned notes a change of a tree that a container has: a signature, or another state that counts.
func (t *tree) noteSigned(name string, e entry) {
	if t.signed.states == nil {
		return
	}
	state, rest := stateOf(name)
	switch {
	case e.digest != "" && rest == signed.FileName:
		st, err := signed.Verify(e.text, t.rule.Keys)
		if err != nil {
			return // verify has refused it
		}
		t.signed.states[state] = st
		if state == "" {
			t.signed.current = st
		}
	case name == contract.KubeletData:
		t.signed.current = t.signed.states[e.link]
	}
}
