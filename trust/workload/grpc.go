// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/policy"
)

// Codes of gRPC that this package itself answers with.
const (
	grpcInvalid   = 3
	grpcExhausted = 8
)

// kindGRPC is the content type of a call of gRPC; a suffix may name the encoding of its message.
const kindGRPC = "application/grpc"

// isGRPC says whether a request is a call of gRPC. It comes over HTTP/2 without TLS.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), kindGRPC)
}

// grpc answers a call: one message in, and one out or a status.
func (a *API) grpc(w http.ResponseWriter, r *http.Request, c *policy.Container) {
	out, code, text := a.grpcAnswer(r, c)
	defer clear(out)
	h := w.Header()
	h.Set("Content-Type", kindGRPC)
	h.Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	if code == 0 {
		head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(out))) //nolint:gosec // answers are bounded
		_, _ = w.Write(append(head, out...))                               //nolint:gosec // no page: the content type is gRPC's, and it may have gone
	}
	h.Set("Grpc-Status", strconv.Itoa(code))
	h.Set("Grpc-Message", url.PathEscape(text))
}

func (a *API) grpcAnswer(r *http.Request, c *policy.Container) (out []byte, code int, text string) {
	if !a.busy.take(c.Name) {
		return nil, grpcExhausted, fmt.Sprintf("container %s has %d requests that are being answered", c.Name, maxBusy)
	}
	defer a.busy.give(c.Name)
	const head = 5 // one byte: compressed; four: the length
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody || len(body) < head || body[0] != 0 ||
		int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-head) {
		return nil, grpcInvalid, fmt.Sprintf("the call is not one message of at most %d bytes without compression", maxBody)
	}
	return a.cfg.Azure.Call(r.Context(), c, r.URL.Path, body[head:])
}
