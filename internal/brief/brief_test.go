// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package brief

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestErrorKeepsBeginningEndAndClass(t *testing.T) {
	if Error(nil) != nil {
		t.Error("no error became one")
	}
	if err := Error(fmt.Errorf("a short one:\n  | line: %w", io.EOF)); err.Error() != "a short one: | line: EOF" ||
		!errors.Is(err, io.EOF) {
		t.Errorf("a short one = %v", err)
	}
	long := fmt.Errorf("phase kernel: %w: %sKernel panic – not syncing", io.EOF, strings.Repeat("öäü line\n", 300))
	err := Error(long)
	got := err.Error()
	if len(got) > Most || !utf8.ValidString(got) || !strings.HasPrefix(got, "phase kernel: EOF") ||
		!strings.HasSuffix(got, "Kernel panic – not syncing") || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if n := strings.Count(got, "\n"); n != 0 {
		t.Errorf("%d line breaks", n)
	}
	if bad := Error(errors.New("\xff\xfe")); !utf8.ValidString(bad.Error()) {
		t.Errorf("%q is not UTF-8", bad)
	}
}
