// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// MaxSize is the largest policy that is read, in bytes.
const MaxSize = 512 << 10

const maxDepth = 16 // of nested lists and objects; the format itself has 8

// Encode writes a policy in its canonical form. It refuses what Validate refuses.
func Encode(p *Policy) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	b, err := encode(p)
	if err == nil && len(b) > MaxSize {
		err = fmt.Errorf("the policy has %d bytes, at most %d are read", len(b), MaxSize)
	}
	return b, err
}

func encode(p *Policy) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("encode the policy: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// Load reads a policy in its canonical form and refuses every other form of it. It leaves out the
// checks of sealed secrets: coco-trust makes them before it opens one.
func Load(b []byte) (*Policy, error) {
	p, canonical, err := read(b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(b, canonical) {
		return nil, fmt.Errorf("the policy is not in its canonical form, from byte %d on; write it with `coco policy format`",
			firstDifference(b, canonical))
	}
	return p, p.problems(nil).err()
}

// Parse reads a policy in any spacing and order of members.
func Parse(b []byte) (*Policy, error) {
	p, canonical, err := read(b)
	if err != nil {
		return nil, err
	}
	if err := onlyOnce(b); err != nil {
		return nil, err
	}
	var theirs, ours any
	if err := errors.Join(json.Unmarshal(b, &theirs), json.Unmarshal(canonical, &ours)); err != nil {
		return nil, fmt.Errorf("the policy is not JSON: %w", err)
	}
	if at := lost(theirs, ours); at != "" {
		return nil, fmt.Errorf("the policy has an unknown member %s; names are case-sensitive",
			clip(strings.TrimPrefix(at, ".")))
	}
	return p, p.Validate()
}

// read decodes a policy of this version and returns its canonical form beside it.
func read(b []byte) (*Policy, []byte, error) {
	if len(b) > MaxSize {
		return nil, nil, fmt.Errorf("the policy has %d bytes, at most %d are read", len(b), MaxSize)
	}
	if !utf8.Valid(b) {
		return nil, nil, errors.New("the policy is not UTF-8")
	}
	if err := bounded(b); err != nil {
		return nil, nil, err
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, nil, fmt.Errorf("the policy is not JSON of its format: %w", err)
	}
	if head.APIVersion != APIVersion {
		return nil, nil, fmt.Errorf("the policy has apiVersion %s, known is %q", clip(head.APIVersion), APIVersion)
	}
	p := &Policy{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(p); err != nil {
		return nil, nil, fmt.Errorf("the policy is not of its format: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("something follows the policy")
	}
	canonical, err := encode(p)
	return p, canonical, err
}

// bounded refuses deep nesting before anything recurses.
func bounded(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("the policy nests deeper than %d at byte %d", maxDepth, i)
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return nil
}

// onlyOnce refuses repeated members and null.
func onlyOnce(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	_, err := value(dec)
	return err
}

// value reads one value; end: it was the end of a list or object.
func value(dec *json.Decoder) (end bool, err error) {
	t, err := dec.Token()
	if err != nil {
		return false, fmt.Errorf("the policy is not JSON: %w", err)
	}
	switch t {
	case nil:
		return false, fmt.Errorf("the policy has null before byte %d; leave the member out", dec.InputOffset())
	case json.Delim('['):
		for !end && err == nil {
			end, err = value(dec)
		}
		return false, err
	case json.Delim('{'):
		return false, members(dec)
	}
	return t == json.Delim(']'), nil
}

func members(dec *json.Decoder) error {
	seen := map[string]bool{}
	for {
		t, err := dec.Token()
		if err != nil {
			return fmt.Errorf("the policy is not JSON: %w", err)
		}
		name, ok := t.(string)
		if !ok {
			return nil
		}
		if seen[name] {
			return fmt.Errorf("the policy has the member %s twice, before byte %d", clip(name), dec.InputOffset())
		}
		seen[name] = true
		if _, err := value(dec); err != nil {
			return err
		}
	}
}

// lost finds a member whose value is not in the canonical form, and is not zero either: the decoder took it for another
// one, whose name differs in case.
func lost(theirs, ours any) string {
	switch t := theirs.(type) {
	case map[string]any:
		o, _ := ours.(map[string]any)
		for name, v := range t {
			of, known := o[name]
			if !known && !zero(v) {
				return "." + name
			}
			if at := lost(v, of); known && at != "" {
				return "." + name + at
			}
		}
	case []any:
		o, _ := ours.([]any)
		for i := range min(len(t), len(o)) {
			if at := lost(t[i], o[i]); at != "" {
				return fmt.Sprintf("[%d]%s", i, at)
			}
		}
	}
	return ""
}

func zero(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, m := range v {
			if !zero(m) {
				return false
			}
		}
		return true
	case []any:
		return len(v) == 0
	}
	return v == nil || v == false || v == "" || v == float64(0)
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// clip quotes a text of others for an error.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
