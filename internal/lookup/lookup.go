// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lookup is how a guest asks the host for names. The agent takes DNS messages from the guest's processes and
// writes each as one frame to the stream that the shim has opened; the shim asks the engine's resolver and writes the
// answer as a frame with the same number. A frame is the number (2 bytes), the transport of the question (1 byte: 0 for
// UDP, 1 for TCP), the length of the message (2 bytes) and the message; integers are big-endian. An empty answer says
// that there is none.
package lookup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bounds of both sides.
const (
	MaxQuery  = 4096      // bytes of a question
	MaxAnswer = 1<<16 - 1 // bytes of an answer
	MaxFlying = 64        // questions without an answer
)

// ErrFrame says that the peer wrote something that is no frame, or a longer one than it may.
var ErrFrame = errors.New("malformed frame of a name lookup")

// headerLen is that of a frame's header and of a DNS message's (RFC 1035, 4.1.1).
const (
	headerLen = 5
	dnsHeader = 12
)

// Message is a DNS message.
type Message struct {
	Number uint16 // the asker's; the answer has it too
	TCP    bool   // the question came by TCP, else by UDP
	Body   []byte
}

// Read reads a frame whose message has at most limit bytes.
func Read(r io.Reader, limit int) (Message, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Message{}, err
	}
	m := Message{Number: binary.BigEndian.Uint16(h[:]), TCP: h[2] == 1}
	n := int(binary.BigEndian.Uint16(h[3:]))
	if h[2] > 1 || n > limit {
		return Message{}, fmt.Errorf("%w: transport %d, %d bytes of at most %d", ErrFrame, h[2], n, limit)
	}
	m.Body = make([]byte, n)
	if _, err := io.ReadFull(r, m.Body); err != nil {
		return Message{}, fmt.Errorf("frame of a name lookup: %w", err)
	}
	return m, nil
}

// Write writes a frame, in one call.
func Write(w io.Writer, m Message) error {
	if len(m.Body) > MaxAnswer {
		return fmt.Errorf("%w: %d bytes", ErrFrame, len(m.Body))
	}
	b := make([]byte, headerLen, headerLen+len(m.Body))
	binary.BigEndian.PutUint16(b, m.Number)
	if m.TCP {
		b[2] = 1
	}
	binary.BigEndian.PutUint16(b[3:], uint16(len(m.Body))) //nolint:gosec // checked above
	_, err := w.Write(append(b, m.Body...))
	return err
}

// The flags of a DNS message: its third and fourth byte.
const (
	flagResponse  = 1 << 7 // of the third
	flagRecursion = 1 << 7 // of the fourth: recursion is available
	codeFailed    = 2      // of the fourth: SERVFAIL
	maskCode      = 0x0f
)

// IsQuery says whether bytes can be a question.
func IsQuery(b []byte) bool {
	return len(b) >= dnsHeader && len(b) <= MaxQuery && b[2]&flagResponse == 0
}

// Answers says whether bytes can be the answer to a question: a response with the question's id.
func Answers(b, query []byte) bool {
	return len(b) >= dnsHeader && b[2]&flagResponse != 0 && b[0] == query[0] && b[1] == query[1]
}

// Failure is the answer to a question that nobody could answer: the question with the code SERVFAIL.
func Failure(query []byte) []byte {
	b := append([]byte(nil), query...)
	b[2] |= flagResponse
	b[3] = b[3]&^maskCode | flagRecursion | codeFailed
	return b
}
