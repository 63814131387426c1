// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm2

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// scripted answers each command with the next of its answers, in pieces of some bytes.
type scripted struct {
	answers [][]byte
	piece   int
	sent    [][]byte
}

func (s *scripted) Write(b []byte) (int, error) {
	s.sent = append(s.sent, bytes.Clone(b))
	return len(b), nil
}

func (s *scripted) Read(b []byte) (int, error) {
	if len(s.answers) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.answers[0][:min(s.piece, len(s.answers[0]))])
	s.answers[0] = s.answers[0][n:]
	if len(s.answers[0]) == 0 {
		s.answers = s.answers[1:]
	}
	return n, nil
}

// read8 is the answer of swtpm 0.7 to the question for PCR 8 of a TPM that is new.
var read8 = append([]byte{
	0x80, 1, 0, 0, 0, 62, 0, 0, 0, 0, 0, 0, 0, 0x15, 0, 0, 0, 1, 0, 0x0b, 3, 0, 1, 0, 0, 0, 0, 1, 0, 32,
}, make([]byte, 32)...)

func TestAnswersMayComeInPieces(t *testing.T) {
	for _, piece := range []int{1, 9, 10, 61, 62} {
		s := &scripted{answers: [][]byte{bytes.Clone(read8)}, piece: piece}
		if got, err := New(s).PCR(8); err != nil || !bytes.Equal(got, make([]byte, 32)) {
			t.Errorf("in pieces of %d: %x, %v", piece, got, err)
		}
		want := []byte{0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 1, 0}
		if len(s.sent) != 1 || !bytes.Equal(s.sent[0], want) {
			t.Errorf("sent % x, want % x", s.sent, want)
		}
	}
}

func TestBadAnswersAreRefused(t *testing.T) {
	for i := range read8 {
		cut := bytes.Clone(read8[:i])
		if got, err := New(&scripted{answers: [][]byte{cut}, piece: 64}).PCR(8); err == nil {
			t.Errorf("%d bytes: %x", i, got)
		}
		if i < headerSize {
			continue
		}
		cut[5] = byte(i)
		if got, err := New(&scripted{answers: [][]byte{cut}, piece: 64}).PCR(8); err == nil {
			t.Errorf("%d bytes that say so: %x", i, got)
		}
	}
	var refusal *Error
	_, err := New(&scripted{answers: [][]byte{{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x20}}, piece: 64}).PCR(8)
	if !errors.As(err, &refusal) || refusal.Code != 0x120 {
		t.Errorf("an error of the TPM: %v", err)
	}
	if err := New(&scripted{}).Extend(8, [DigestSize]byte{}); !errors.Is(err, io.EOF) {
		t.Errorf("no answer: %v", err)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(read8)
	f.Add([]byte{0x80, 2, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
	f.Fuzz(func(_ *testing.T, answer []byte) {
		_, _ = New(&scripted{answers: [][]byte{bytes.Clone(answer)}, piece: 64}).PCR(8)
		_ = New(&scripted{answers: [][]byte{bytes.Clone(answer)}, piece: 64}).Extend(8, [DigestSize]byte{})
	})
}
