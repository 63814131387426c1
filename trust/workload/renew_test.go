// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/trust/wire"
)

// The agent is asked to renew the files of the container that asks, and of no other, and its answer is passed on.
func TestRenewals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer *wire.Renewed // nil: the agent ends
		status int
		body   string
	}{
		{"renewed", &wire.Renewed{Changed: 2}, http.StatusOK, `{"changed":2}`},
		{
			"failed", &wire.Renewed{Changed: 1, Error: "secret kbs:///r/t/a: [denied] key broker"},
			http.StatusInternalServerError, "secret kbs:///r/t/a: [denied] key broker\n",
		},
		{"no answer", nil, http.StatusInternalServerError, "the agent does not answer"},
	} {
		a := start(t, config(newBroker(t)))
		c := a.client("unix", "renews")
		asked := make(chan string, 1)
		go func() {
			name := make([]byte, maxName)
			n, files, err := fdpass.Recv(a.to, name, 1)
			if err != nil || len(files) != 1 {
				asked <- "nothing"
				return
			}
			defer files[0].Close()
			if tc.answer != nil {
				err = wire.Write(files[0], tc.answer)
			}
			asked <- strings.TrimSpace(string(name[:n]))
			if err != nil {
				t.Error(err)
			}
		}()
		status, _, body := ask(t, c, http.MethodPost, "http://x/coco/renew", nil)
		if of := <-asked; status != tc.status || !strings.HasPrefix(body, tc.body) || of != "renews" {
			t.Errorf("%s: %d %q, and the agent is asked for %q", tc.name, status, body, of)
		}
		if status, _, _ := ask(t, a.client("unix", "a"), http.MethodPost, "http://x/coco/renew", nil); status != 404 {
			t.Errorf("a container that may not: %d", status)
		}
		if status, _, _ := ask(t, c, http.MethodGet, "http://x/coco/renew", nil); status != http.StatusMethodNotAllowed {
			t.Errorf("GET: %d", status)
		}
	}
}
