// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package strictjson reads JSON objects of messages that are signed, encrypted or sent by a stranger. Package json
// takes the last of two members of one name and ignores the case of names, so that two programs can read one message
// differently. This package refuses such objects.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Members are the members of an object, by their exact names.
type Members map[string]json.RawMessage

// Parse reads one object and nothing after it. It refuses text that is not UTF-8 and a name that stands twice; members
// of inner objects are not looked at.
func Parse(b []byte) (Members, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("the text is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	m := Members{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name, _ := t.(string)
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("member %.40q stands twice", name)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("member %.40q: not JSON: %w", name, err)
		}
		m[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the object")
	}
	return m, nil
}

// Only reads an object that has no other members than these. Members may be missing.
func Only(b []byte, names ...string) (Members, error) {
	m, err := Parse(b)
	if err != nil {
		return nil, err
	}
	for name := range m {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown member %.40q", name)
		}
	}
	return m, nil
}

// Text reads a member that is a string. A missing member is an error.
func (m Members) Text(name string, to *string) error {
	v, ok := m[name]
	if !ok {
		return fmt.Errorf("no %s", name)
	}
	if len(v) == 0 || v[0] != '"' {
		return fmt.Errorf("%s is no string", name)
	}
	return json.Unmarshal(v, to)
}
