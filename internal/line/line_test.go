// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package line

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestOneLineIsReadAndNoByteMore(t *testing.T) {
	for _, tt := range []struct {
		in, want, rest string
		err            error
	}{
		{in: "ok\nbytes", want: "ok", rest: "bytes"},
		{in: "\n\n", want: "", rest: "\n"},
		{in: "1234567\nx", want: "1234567", rest: "x"},
		{in: "12345678\n", want: "12345678", rest: "\n", err: ErrTooLong},
		{in: "no end", err: io.EOF},
		{in: "", err: io.EOF},
	} {
		r := strings.NewReader(tt.in)
		got, err := Read(r, 8)
		rest, _ := io.ReadAll(r)
		if got != tt.want || !errors.Is(err, tt.err) || string(rest) != tt.rest {
			t.Errorf("Read(%q) = %q, %v and leaves %q; want %q, %v, %q", tt.in, got, err, rest, tt.want, tt.err, tt.rest)
		}
	}
}
