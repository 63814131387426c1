// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/coco-shim/coco/policy"
)

// Azure has the endpoints of docs/azure.md; trust/azure implements it.
type Azure interface {
	// Has says whether a path is one of them.
	Has(path string) bool
	// Answer answers a request of a container with a status and a body, which is sent as JSON.
	Answer(ctx context.Context, c *policy.Container, method, path string, body []byte) (int, any)
	// Call answers a call of gRPC with a message, or with a code other than 0 and its text.
	Call(ctx context.Context, c *policy.Container, path string, message []byte) (out []byte, code int, text string)
}

// maxBody bounds the body of a request to them. Runtime data are keys, and bearer tokens have a few KiB.
const maxBody = 64 << 10

// azure answers a request to the endpoints. Errors are JSON there.
func (a *API) azure(w http.ResponseWriter, r *http.Request, c *policy.Container) {
	status, out := a.azureAnswer(r, c)
	body, err := json.Marshal(out)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer is no JSON"}`)
	}
	defer clear(body)
	h := w.Header()
	if status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // it may have gone
}

func (a *API) azureAnswer(r *http.Request, c *policy.Container) (int, any) {
	no := func(status int, format string, args ...any) (int, any) {
		return status, map[string]string{"error": fmt.Sprintf(format, args...)}
	}
	if !a.busy.take(c.Name) {
		return no(http.StatusTooManyRequests, "container %s has %d requests that are being answered; repeat it later", c.Name,
			maxBusy)
	}
	defer a.busy.give(c.Name)
	if r.URL.RawQuery != "" {
		return no(http.StatusBadRequest, "a request has no parameters")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return no(http.StatusBadRequest, "the body does not come, or has more than %d bytes", maxBody)
	}
	return a.cfg.Azure.Answer(r.Context(), c, r.Method, r.URL.Path, body)
}
