// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pipe is how the agent and coco-rego, which evaluates Kata's policies in the guest, talk: over a socket, one
// question and one answer at a time. Neither side shares state with the other.
//
// Client is the agent's side. New sends the policy and waits until it is compiled. Ask follows, and what it returns for
// requests that were handled. Serve is the other side and ends with its input. First comes the policy's text. The
// answer is empty, or why the policy is refused. Each further frame is a question or a commit:
//
//	'a' full name of the message, NUL, message in protobuf's wire form   →  'y' number | 'n' reason | 'e' error
//	'c' number                                                          →  'y' | 'e' error
//
// A frame is its length, 4 bytes with the most significant first, and the content. A number is 8 bytes, likewise.
package pipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxFrame bounds a frame. A request of the host has at most 4 MiB.
const maxFrame = 5 << 20

// Kinds of frames.
const (
	kindAsk    = 'a'
	kindCommit = 'c'
	kindYes    = 'y'
	kindNo     = 'n'
	kindError  = 'e'
)

const headLen = 4

func writeFrame(w io.Writer, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > maxFrame {
		return fmt.Errorf("a frame of %d bytes, more than %d", n, maxFrame)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, headLen+n), uint32(n))
	for _, p := range parts {
		out = append(out, p...)
	}
	_, err := w.Write(out)
	return err
}

// readFrame reads a frame. io.EOF means that there is none any more.
func readFrame(r io.Reader) ([]byte, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, more than %d", n, maxFrame)
	}
	out := make([]byte, n)
	if _, err := io.ReadFull(r, out); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return out, nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// parseNumber reads a number that is all of b.
func parseNumber(b []byte) (uint64, error) {
	if len(b) != len(number(0)) {
		return 0, fmt.Errorf("a number of %d bytes", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
