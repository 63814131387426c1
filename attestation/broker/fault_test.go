// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/broker/session"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/kbs"
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

// What cannot be written into the audit log does not happen.
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
