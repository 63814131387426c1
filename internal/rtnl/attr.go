// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Attr is an attribute of a number, its value in parts, padded as the next one needs it.
func Attr(kind uint16, parts ...[]byte) []byte {
	a := make([]byte, unix.SizeofNlAttr)
	for _, p := range parts {
		a = append(a, p...)
	}
	binary.NativeEndian.PutUint16(a, uint16(len(a))) //nolint:gosec // a few hundred bytes
	binary.NativeEndian.PutUint16(a[2:], kind)
	return append(a, make([]byte, align(len(a))-len(a))...)
}

// Nested is an attribute made of attributes.
func Nested(kind uint16, attrs ...[]byte) []byte { return Attr(kind|unix.NLA_F_NESTED, attrs...) }

// Uint32 is an attribute with a number in the machine's order.
func Uint32(kind uint16, v uint32) []byte {
	return Attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// String is an attribute with a text, ended by a zero byte.
func String(kind uint16, s string) []byte { return Attr(kind, append([]byte(s), 0)) }

// Attrs returns the attributes in b, by number and value, up to the first that does not parse. The kernel sends
// complete ones.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min(len(b), align(length)):]
		}
	}
}

// U32 is a number in the machine's order, 0 when there are not four bytes of it.
func U32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// Text is a string without its closing zero.
func Text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func align(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }
