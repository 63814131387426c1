// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"net/http"
	"os"
	"testing"
	"time"
)

// A stranger cannot fill the disk: refusals are told up to a bound, then seldom, with the number of those left out.
func TestAStrangerDoesNotFillTheAuditLog(t *testing.T) {
	w := begin(t, false, nil)
	lines := func() int {
		text, err := os.ReadFile(w.audit)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(text, []byte(`"denied"`))
	}
	knock := func(n int) {
		for range n {
			r, err := w.srv.Client().Get(w.srv.URL + "/kbs/v0/admin/resources")
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			if r.StatusCode != http.StatusUnauthorized {
				t.Fatalf("status %d", r.StatusCode)
			}
		}
	}
	knock(strangersBurst + 50)
	if n := lines(); n != strangersBurst {
		t.Errorf("%d refusals are told of %d, want %d", n, strangersBurst+50, strangersBurst)
	}
	w.clock.move(3 * time.Second)
	knock(50)
	if n := lines(); n != strangersBurst+3 {
		t.Errorf("%d refusals are told, want three more, one for each second", n)
	}
	text, err := os.ReadFile(w.audit)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"left_out":"50"`)) {
		t.Error("no entry says how many were left out")
	}
}
