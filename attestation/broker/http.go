// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/metrics"
)

const (
	// MaxHeader bounds the head of a request: tokens are long.
	MaxHeader = 128 << 10

	maxVerifying = 64
	jsonType     = "application/json"
)

// reply writes JSON.
func reply(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, kbs.SerdeError, err.Error())
		return
	}
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(text) // the client may be gone
}

// refuse writes an error of the protocol.
func refuse(w http.ResponseWriter, status int, of kbs.ErrorType, detail string) {
	text, err := json.Marshal(&kbs.Error{Type: of, Detail: detail})
	if err != nil {
		text = nil
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	_, _ = w.Write(text) // likewise
}

// later asks the client to come again.
func later(w http.ResponseWriter, status int, after time.Duration, of kbs.ErrorType, detail string) {
	w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
	refuse(w, status, of, detail)
}

// body reads a request of bounded length. It answers itself if it cannot.
func body(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, kbs.MaxBody))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		refuse(w, http.StatusRequestEntityTooLarge, kbs.HTTPFailed, fmt.Sprintf("more than %d bytes", kbs.MaxBody))
		return nil, false
	case err != nil:
		refuse(w, http.StatusBadRequest, kbs.HTTPFailed, "the body ended early")
		return nil, false
	}
	return b, true
}

// addrOf is the address of a client, without the port.
func addrOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// routes are all routes. Each administrator's route goes through admit.
func (b *Broker) routes() http.Handler {
	mux := http.NewServeMux()
	p := kbs.Prefix
	mux.HandleFunc("POST "+p+"/auth", b.auth)
	mux.HandleFunc("POST "+p+"/attest", b.attest)
	mux.HandleFunc("GET "+p+"/{plugin}/{path...}", b.resource)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /metrics", b.metrics)
	mux.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) { reply(w, b.signer.Set()) })
	mux.HandleFunc("GET /.well-known/openid-configuration", b.discovery)
	for route, handle := range b.adminRoutes() {
		mux.HandleFunc(route, b.admit(handle))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, kbs.InvalidRequestPath, "no route "+strconv.Quote(r.Method+" "+r.URL.Path))
	})
	return mux
}

// discovery is OIDC discovery, by which others find the keys.
func (b *Broker) discovery(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]any{
		"issuer": b.cfg.Issuer, "jwks_uri": b.cfg.Issuer + "/.well-known/jwks.json",
		"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
}

// metrics are those of Prometheus. They name no guest and no resource.
func (b *Broker) metrics(w http.ResponseWriter, _ *http.Request) {
	s := metrics.New()
	s.Gauge("coco_kbs_sessions", "Open sessions.", float64(b.sessions.Size()))
	for _, c := range b.counters.all() {
		s.Counter("coco_kbs_"+c.name+"_total", help[c.name], c.n, "result", c.result)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = io.WriteString(w, s.String())
}

var help = map[string]string{
	"auth": "Sessions that were asked for.", "attest": "Evidence that was judged.",
	"resource": "Resources that were asked for.",
	"admin":    "Requests of administrators.", "audit_errors": "Audit entries that were lost.",
}
