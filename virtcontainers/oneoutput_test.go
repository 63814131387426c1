// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"io"
	"strings"
	"testing"
)

// Outputs that go to one place come by one stream, in the order in which they were written. An agent that cannot do it
// is asked for two.
func TestOutputsOfOnePlaceComeInOrder(t *testing.T) {
	for name, can := range map[string]bool{"an agent that can": true, "an agent that cannot": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.oneOutput = can
			o := w.options("both")
			o.First.Stdout, o.First.Stderr, o.First.OneOutput = true, true, true
			p, st := start(t, w, o)
			if (st.Stderr == nil) != can {
				t.Fatalf("a stream for stderr: %v, want %v", st.Stderr != nil, !can)
			}
			if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			errs := make(chan string, 1)
			if !can {
				go func() {
					text, err := io.ReadAll(st.Stderr)
					if err != nil {
						t.Error(err)
					}
					errs <- string(text)
				}()
			}
			out, err := io.ReadAll(st.Stdout)
			if err != nil {
				t.Fatal(err)
			}
			if can && string(out) != strings.Repeat("o\ne\n", 100) {
				t.Errorf("stdout and stderr: %q", out)
			}
			if !can && (string(out) != strings.Repeat("o\n", 100) || <-errs != strings.Repeat("e\n", 100)) {
				t.Errorf("stdout: %q", out)
			}
			wait(t, p, "")
		})
	}
}
