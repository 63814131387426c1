// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lookup

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	in := []Message{{Number: 1, Body: []byte("question")}, {Number: 0xffff, TCP: true, Body: []byte{}}}
	for _, m := range in {
		if err := Write(&b, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range in {
		if got, err := Read(&b, 8); err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("Read() = %+v, %v, want %+v", got, err, want)
		}
	}
	for name, bad := range map[string]string{
		"another transport": "\x00\x01\x02\x00\x01x", "longer than allowed": "\x00\x01\x00\x00\x09123456789",
	} {
		if _, err := Read(bytes.NewReader([]byte(bad)), 8); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Write(&b, Message{Body: make([]byte, MaxAnswer+1)}); !errors.Is(err, ErrFrame) {
		t.Errorf("a message that no frame can hold: %v", err)
	}
}

func TestAnswersBelongToTheirQuestion(t *testing.T) {
	query := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01")
	if !IsQuery(query) || IsQuery(query[:11]) || IsQuery(append(query, make([]byte, MaxQuery)...)) {
		t.Error("IsQuery tells questions wrong")
	}
	failed := Failure(query)
	if !Answers(failed, query) || Answers(query, query) || IsQuery(failed) || failed[3] != 0x82 || query[2] != 1 {
		t.Errorf("Failure() = %x", failed)
	}
	failed[0]++
	if Answers(failed, query) || Answers(nil, query) {
		t.Error("an answer with another id is taken")
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x02ab"))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in)+MaxQuery)()
		m, err := Read(bytes.NewReader(in), MaxQuery)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := Write(&out, m); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("Write(%+v) = %x, %v, and it was read from %x", m, out.Bytes(), err, in)
		}
		if IsQuery(m.Body) && !Answers(Failure(m.Body), m.Body) {
			t.Errorf("Failure(%x) is no answer", m.Body)
		}
	})
}
