// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// object is a JSON object that is written.
type object map[string]any

// raws are the members of an object that was read, by their exact names.
type raws map[string]json.RawMessage

// members reads the members of one object. Package json alone would take the last of two members of one name, and
// ignore whether letters are large.
func members(b []byte) (raws, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("the text is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	m := raws{}
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

// only reads an object that has no other members than these.
func only(b []byte, names ...string) (raws, error) {
	m, err := members(b)
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

// text reads a member that is a string.
func (m raws) text(name string, to *string) error {
	v, ok := m[name]
	if !ok {
		return fmt.Errorf("no %s", name)
	}
	if len(v) == 0 || v[0] != '"' {
		return fmt.Errorf("%s is no string", name)
	}
	return json.Unmarshal(v, to)
}

// canonical writes a value in the form of RFC 8785. It knows strings, booleans, nil, whole numbers up to 2^53, objects
// and lists; what the protocol hashes has no other values.
func canonical(v any) ([]byte, error) { return appendCanonical(nil, v) }

func appendCanonical(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case string:
		return appendString(b, v)
	case float64:
		if v != math.Trunc(v) || math.Abs(v) > 1<<53 {
			return nil, fmt.Errorf("%v is no whole number below 2^53", v)
		}
		return strconv.AppendInt(b, int64(v), 10), nil
	case []any:
		return appendList(b, v)
	case map[string]any:
		return appendObject(b, v)
	case object:
		return appendObject(b, v)
	}
	return nil, fmt.Errorf("a value of type %T", v)
}

func appendList(b []byte, list []any) ([]byte, error) {
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendCanonical(b, v); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

// appendObject orders members by the UTF-16 code units of their names: RFC 8785, section 3.2.3.
func appendObject(b []byte, m map[string]any) ([]byte, error) {
	names := slices.SortedFunc(maps.Keys(m), func(x, y string) int {
		return slices.Compare(utf16.Encode([]rune(x)), utf16.Encode([]rune(y)))
	})
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendString(b, name); err != nil {
			return nil, err
		}
		if b, err = appendCanonical(append(b, ':'), m[name]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// appendString escapes what RFC 8785, section 3.2.2.2, says, and nothing else.
func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("a string that is not UTF-8")
	}
	const short = "\b\t\n\f\r\"\\"
	b = append(b, '"')
	for i := range len(s) {
		c := s[i]
		switch at := bytes.IndexByte([]byte(short), c); {
		case at >= 0:
			b = append(b, '\\', "btnfr\"\\"[at])
		case c < 0x20:
			b = fmt.Appendf(b, "\\u%04x", c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"'), nil
}
