// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire reads and writes protobuf messages field by field. It is for messages of other projects of
// which only a few fields matter: a generated package would make the shim, of which every pod has one, up to a
// megabyte larger.
//
// As in proto3, a field that is zero is not written, and one that is absent reads as zero.
package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Message is a message under construction.
type Message []byte

// Number appends an integer.
func (m *Message) Number(n protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, n, protowire.VarintType), v)
	}
}

// Text appends a string.
func (m *Message) Text(n protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, n, protowire.BytesType), s)
	}
}

// Sub appends a message, also an empty one.
func (m *Message) Sub(n protowire.Number, s Message) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), s)
}

// Time appends a google.protobuf.Timestamp, if it is set.
func (m *Message) Time(n protowire.Number, t time.Time) {
	if t.IsZero() {
		return
	}
	var ts Message
	ts.Number(1, uint64(t.Unix()))       //nolint:gosec // int64 on the wire
	ts.Number(2, uint64(t.Nanosecond())) //nolint:gosec // likewise
	m.Sub(n, ts)
}

// Any appends a google.protobuf.Any.
func (m *Message) Any(n protowire.Number, typeURL string, value Message) {
	var a Message
	a.Text(1, typeURL)
	a.Sub(2, value)
	m.Sub(n, a)
}

// Fields are the fields of a message by number, in the order of arrival.
type Fields map[protowire.Number][]Field

// Field is one field: an integer or bytes.
type Field struct {
	Number uint64
	Bytes  []byte
}

// Parse splits a message into its fields. Groups and fixed-size numbers are skipped. The bytes of fields
// are those of b.
func Parse(b []byte) (Fields, error) {
	out := Fields{}
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, fmt.Errorf("decode message: %w", protowire.ParseError(size))
		}
		b = b[size:]
		var f Field
		switch kind { // see default
		case protowire.VarintType:
			f.Number, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.Bytes, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return nil, fmt.Errorf("decode field %d of a message: %w", n, protowire.ParseError(size))
		}
		b = b[size:]
		out[n] = append(out[n], f)
	}
	return out, nil
}

// last is the value of a field that is not repeated.
func (f Fields) last(n protowire.Number) Field {
	if v := f[n]; len(v) > 0 {
		return v[len(v)-1]
	}
	return Field{}
}

// Number returns an integer.
func (f Fields) Number(n protowire.Number) uint64 { return f.last(n).Number }

// Text returns a string.
func (f Fields) Text(n protowire.Number) string { return string(f.last(n).Bytes) }

// Texts returns a repeated string.
func (f Fields) Texts(n protowire.Number) []string {
	var out []string
	for _, v := range f[n] {
		out = append(out, string(v.Bytes))
	}
	return out
}

// Reader reads nested messages and keeps the first error, so that it is checked once.
type Reader struct{ Err error }

// Message is Parse.
func (r *Reader) Message(b []byte) Fields {
	f, err := Parse(b)
	if err != nil && r.Err == nil {
		r.Err = err
	}
	return f
}

// Sub returns a message in a message, and whether it is there.
func (r *Reader) Sub(f Fields, n protowire.Number) (Fields, bool) {
	if len(f[n]) == 0 {
		return nil, false
	}
	return r.Message(f.last(n).Bytes), true
}

// Map returns a map of strings.
func (r *Reader) Map(f Fields, n protowire.Number) map[string]string {
	out := map[string]string{}
	for _, v := range f[n] {
		e := r.Message(v.Bytes)
		out[e.Text(1)] = e.Text(2)
	}
	return out
}
