// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/broker/token"
	"github.com/coco-shim/coco/attestation/kbs"
)

// do sends a request to the handler, without a network.
func (w *world) do(method, path string, body []byte, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.srv.Config.Handler.ServeHTTP(rec, req)
	return rec
}

// BenchmarkAttestation is one session with evidence of SNP: verification, policy, token, audit. Making the evidence is
// not counted.
func BenchmarkAttestation(b *testing.B) {
	w := begin(b, true, func(c *Config) { c.MaxSessions = 1 << 30 })
	hands := make([]handshake, b.N)
	for i := range hands {
		hands[i] = w.prepare(b)
	}
	b.ResetTimer()
	for _, h := range hands {
		if rec := w.do(http.MethodPost, "/kbs/v0/attest", h.message, "Cookie", h.cookie); rec.Code != http.StatusOK {
			b.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "attestations/s")
}

// BenchmarkResource is one request for a resource: token, policy, store, encryption, audit.
func BenchmarkResource(b *testing.B) {
	w := begin(b, true, nil)
	tok, err := w.client(nil).Token(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		rec := w.do(http.MethodGet, "/kbs/v0/resource/"+password, nil, "Authorization", "Bearer "+tok.JWT)
		if rec.Code != http.StatusOK {
			b.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "resources/s")
}

// No bytes in a request make the broker panic or accept: each answer is a message of the protocol.
func FuzzRequests(f *testing.F) {
	w := begin(f, true, nil)
	h := w.prepare(f)
	f.Add([]byte(`{"version":"0.4.0","tee":"snp","extra-params":""}`))
	f.Add(bytes.Replace(h.message, []byte(`"guest_svn":0`), []byte(`"guest_svn":1`), 1))
	f.Add([]byte(`{"type":"sample","payload":"e30="}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := w.b.sessions.Open("snp", "fuzz")
		if err != nil {
			w.clock.move(time.Hour)
			return
		}
		for _, path := range []string{"/kbs/v0/auth", "/kbs/v0/attest"} {
			rec := w.do(http.MethodPost, path, body, "Cookie", kbs.Cookie+"="+s.ID)
			if rec.Code == http.StatusOK && path == "/kbs/v0/attest" {
				t.Errorf("accepted: %s", body)
			}
			if rec.Code != http.StatusOK && kbs.ParseError(rec.Code, rec.Body.Bytes()).Type == "" {
				t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
			}
		}
	})
}

// No token passes that was not signed by the key.
func FuzzToken(f *testing.F) {
	now := func() time.Time { return time.Unix(1e9, 0) }
	s := &token.Signer{Issuer: "i", Now: now}
	k, err := token.NewKey(now())
	if err != nil {
		f.Fatal(err)
	}
	s.SetKeys([]*token.Key{k})
	good, err := s.Sign(map[string]any{"aud": "a", "role": "r"}, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, text string) {
		claims, err := s.Verify(text, "a")
		if err == nil && (claims["role"] != "r" || claims["iss"] != "i") {
			t.Errorf("%q: %v", text, claims)
		}
	})
}
