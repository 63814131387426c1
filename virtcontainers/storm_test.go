// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"fmt"
	"io"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A guest holds 64 streams that no request has named. Above some thirty execs at once they failed.
func TestTwoHundredExecsAtOnceNeverFillTheGuestsQueue(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			id := fmt.Sprintf("e%d", i)
			req := ExecRequest{
				ID: id, Process: &specs.Process{Args: []string{"echo", id}, Cwd: "/"},
				Stdin: true, Stdout: true, Stderr: true,
			}
			if _, err := ctr(t, p, "c1").Exec(req); err != nil {
				t.Error(err)
				return
			}
			s, err := proc(t, p, "c1", id).Start(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := io.ReadAll(s.Stdout); string(out) != id+"\n" || err != nil {
				t.Errorf("%s printed %q, %v", id, out, err)
			}
			if _, err := io.ReadAll(s.Stderr); err != nil {
				t.Error(err)
			}
			if st := wait(t, p, id); st.Code != 0 {
				t.Errorf("%s: %+v", id, st)
			}
		})
	}
	wg.Wait()
	a := w.vm().agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.most > 64 {
		t.Errorf("%d streams waited in the guest", a.most)
	}
}
