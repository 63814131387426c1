// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAnErrorThatEndsAnOutput(t *testing.T) {
	for text, terminal := range map[string]bool{
		"EIO: I/O error": true, "Input/output error (os error 5)": true, "read /dev/ptmx: input/output error": true,
		"failed\n\nCaused by:\n    EIO": true, "unexpected EOF": false, "agent: eof": false,
	} {
		err := status.Error(codes.Internal, text)
		if got := readError(err, true); !errors.Is(got, io.EOF) {
			t.Errorf("at a terminal %q = %v, want io.EOF", text, got)
		}
		if got := readError(err, false); errors.Is(got, io.EOF) == terminal {
			t.Errorf("at a pipe %q = %v", text, got)
		}
	}
	if got := readError(status.Error(codes.Internal, "disk on fire"), true); errors.Is(got, io.EOF) {
		t.Error("another error ends a terminal")
	}
}
