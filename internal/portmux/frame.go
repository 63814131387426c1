// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"encoding/binary"
	"fmt"
)

// Frame header: version, type, flags(2), stream(4), length(4), big endian; yamux specification,
// section "Framing".
const (
	headerSize = 12

	typeData   = 0 // length bytes follow
	typeWindow = 1 // length is added to what the peer may send
	typePing   = 2 // length is a number to be sent back
	typeGoAway = 3 // length is a reason

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	// initialWindow is how many bytes may be sent on a stream before any window frame; section "Flow Control".
	initialWindow = 256 << 10
)

type header struct {
	kind   byte
	flags  uint16
	stream uint32
	length uint32
}

func (h header) append(b []byte) []byte {
	b = append(b, 0, h.kind)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint32(b, h.stream)
	return binary.BigEndian.AppendUint32(b, h.length)
}

func parseHeader(b *[headerSize]byte) (header, error) {
	h := header{
		kind: b[1], flags: binary.BigEndian.Uint16(b[2:]),
		stream: binary.BigEndian.Uint32(b[4:]), length: binary.BigEndian.Uint32(b[8:]),
	}
	if b[0] != 0 || h.kind > typeGoAway || h.flags > flagSYN|flagACK|flagFIN|flagRST {
		return h, fmt.Errorf("frame header % x: %w", b[:], ErrProtocol)
	}
	return h, nil
}
