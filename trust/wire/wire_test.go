// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessagesArriveAsTheyWereSent(t *testing.T) {
	var b bytes.Buffer
	want := Answer{Secret: []byte{0, 1, 2}, Error: &Failure{Code: "denied", Text: "no"}}
	if err := errors.Join(Write(&b, want), Write(&b, Request{Resource: "kbs:///a/b/c"})); err != nil {
		t.Fatal(err)
	}
	var got Answer
	var req Request
	if err := errors.Join(Read(&b, &got), Read(&b, &req)); err != nil || req.Resource != "kbs:///a/b/c" {
		t.Errorf("%v, %+v", err, req)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := Read(&b, &got); !errors.Is(err, io.EOF) {
		t.Errorf("Read() at the end = %v", err)
	}
	if got := want.Error.Error(); got != "[denied] no" {
		t.Errorf("Error() = %q", got)
	}
}

func TestBadMessagesAreRefused(t *testing.T) {
	framed := func(body string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
	}
	for name, text := range map[string]string{
		"a long one":        "\xff\xff\xff\xff",
		"cut short":         framed("{}")[:5],
		"an unknown member": framed(`{"resource":"x","more":1}`),
		"no JSON":           framed("x"),
		"half a length":     "\x00\x00",
	} {
		var req Request
		if err := Read(strings.NewReader(text), &req); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: Read() = %v", name, err)
		}
	}
	if err := Write(io.Discard, Setup{Initdata: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("a message that is too long was sent")
	}
}
