// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/broker/session"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/policy/rego"
)

// Without AMD's list nothing can be judged. The same message is judged once the list is there; another one is not.
func TestEvidenceThatCannotBeJudgedYet(t *testing.T) {
	w := begin(t, true, nil)
	docs := w.b.cfg.Evidence.Collateral
	w.b.cfg.Evidence.Collateral = &collateral.Store{Now: w.clock.now}
	h := w.prepare(t)
	rec := w.do(http.MethodPost, "/kbs/v0/attest", h.message, "Cookie", h.cookie)
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" ||
		!strings.Contains(rec.Body.String(), "collateral-missing") {
		t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	w.b.cfg.Evidence.Collateral = docs
	if s, text := w.attest(h.cookie, w.message(t, h.nonce)); s != http.StatusConflict {
		t.Errorf("other evidence: %d %s", s, text)
	}
	if s, text := w.attest(h.cookie, h.message); s != http.StatusOK {
		t.Errorf("the same message: %d %s", s, text)
	}
}

// One address cannot take all sessions.
func TestAddressesHaveTheirShare(t *testing.T) {
	w := begin(t, true, func(c *Config) { c.MaxSessions = 4 })
	body := []byte(`{"version":"0.4.0","tee":"snp"}`)
	if rec := w.do(http.MethodPost, "/kbs/v0/auth", body); rec.Code != http.StatusOK {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	rec := w.do(http.MethodPost, "/kbs/v0/auth", body)
	if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") == "" ||
		kbs.ParseError(rec.Code, rec.Body.Bytes()).Type != kbs.AttestationError {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	w.clock.move(session.DefaultLife)
	if rec := w.do(http.MethodPost, "/kbs/v0/auth", body); rec.Code != http.StatusOK {
		t.Errorf("afterwards: %d %s", rec.Code, rec.Body)
	}
}

// A change that cannot be written into the audit log does not happen.
func TestNoChangeWithoutAudit(t *testing.T) {
	w := begin(t, true, nil)
	if err := w.b.cfg.Audit.Close(); err != nil {
		t.Fatal(err)
	}
	s, text := w.ask("POST", "/kbs/v0/resource/"+password, w.admin, []byte("another"))
	if s != http.StatusInternalServerError {
		t.Errorf("%d %s", s, text)
	}
	if got, _, err := w.b.cfg.Store.Get(bucketResource, password); err != nil || string(got) != "a secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// A policy that has no answer in time, as on an overloaded machine, is no refusal: the guest is told to repeat, on the
// same session, and gets its token and its secret when the policy answers.
func TestPoliciesThatTakeTooLong(t *testing.T) {
	w := begin(t, true, nil)
	const endless = "n := numbers.range(1, 100000)\nslow if count([1 | some i in n; some j in n; i == -j]) == 0\n"
	set := func(kind rego.Kind, text string) {
		m := fmt.Appendf(nil, `{"policy":%q}`, base64.RawURLEncoding.EncodeToString([]byte(text)))
		w.must(http.MethodPost, "/kbs/v0/"+string(kind)+"-policy", m)
	}
	waits := func(rec *httptest.ResponseRecorder) {
		t.Helper()
		if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" ||
			!strings.Contains(rec.Body.String(), rego.ErrTimeout.Error()) {
			t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
		}
	}
	h := w.prepare(t)
	set(rego.Attestation, "package policy\n"+endless+"trust_claims := {\"hardware\": 2} if slow\n")
	waits(w.do(http.MethodPost, "/kbs/v0/attest", h.message, "Cookie", h.cookie))
	set(rego.Attestation, defaultAttestation)
	rec := w.do(http.MethodPost, "/kbs/v0/attest", h.message, "Cookie", h.cookie)
	tok, err := kbs.ParseToken(rec.Body.Bytes())
	if err != nil {
		t.Fatalf("the same message: %d %s: %v", rec.Code, rec.Body, err)
	}
	get := func() *httptest.ResponseRecorder {
		return w.do(http.MethodGet, "/kbs/v0/resource/"+password, nil, "Authorization", "Bearer "+tok.Token)
	}
	set(rego.Resource, "package policy\n"+endless+"allow if slow\n")
	waits(get())
	set(rego.Resource, defaultResource)
	if rec := get(); rec.Code != http.StatusOK {
		t.Errorf("the resource: %d %s", rec.Code, rec.Body)
	}
}
