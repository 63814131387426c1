// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const tokenLife = time.Hour

// issue makes a bearer token.
func (f *Fake) issue(resource string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.tokens) >= maxTokens {
		f.tokens = map[string]bearer{}
	}
	t := "fake." + random(24)
	f.tokens[t] = bearer{strings.TrimRight(resource, "/"), f.opts.Now().Add(tokenLife)}
	return t
}

// entra serves POST /TENANT/oauth2/v2.0/token.
func (f *Fake) entra(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code, text string) {
		answer(w, status, map[string]string{"error": code, "error_description": text})
	}
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token") {
		fail(http.StatusNotFound, "not_found", "POST /TENANT/oauth2/v2.0/token is served")
		return
	}
	resource, ok := strings.CutSuffix(r.PostFormValue("scope"), "/.default")
	switch {
	case r.PostFormValue("grant_type") != "client_credentials" || r.PostFormValue("client_id") == "" || !ok:
		fail(http.StatusBadRequest, "invalid_request", "grant_type, client_id or scope is missing or wrong")
	case !strings.HasSuffix(r.PostFormValue("client_assertion_type"), ":jwt-bearer") ||
		r.PostFormValue("client_assertion") == "":
		fail(http.StatusUnauthorized, "invalid_client", "a client assertion is wanted")
	default:
		answer(w, http.StatusOK, map[string]any{
			"token_type": "Bearer", "expires_in": int(tokenLife.Seconds()), "access_token": f.issue(resource),
		})
	}
}

// metadata serves the metadata service: bearer tokens, and THIM.
func (f *Fake) metadata(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code, text string) {
		answer(w, status, map[string]string{"error": code, "error_description": text})
	}
	q := r.URL.Query()
	switch {
	case r.Header.Get("Metadata") != "true":
		fail(http.StatusBadRequest, "invalid_request", "the header Metadata: true is missing")
	case r.URL.Path == "/metadata/identity/oauth2/token":
		if q.Get("resource") == "" || q.Get("api-version") == "" {
			fail(http.StatusBadRequest, "invalid_resource", "resource or api-version is missing")
			return
		}
		answer(w, http.StatusOK, map[string]string{ // numbers are strings there
			"access_token": f.issue(q.Get("resource")), "token_type": "Bearer", "resource": q.Get("resource"),
			"expires_in": fmt.Sprint(int(tokenLife.Seconds())), "client_id": q.Get("client_id"),
		})
	case r.URL.Path == "/metadata/THIM/amd/certification" && f.opts.Chain != nil:
		_, rest := pem.Decode(f.opts.Chain)
		answer(w, http.StatusOK, map[string]string{
			"vcekCert":         string(f.opts.Chain[:len(f.opts.Chain)-len(rest)]),
			"certificateChain": string(rest), "tcbm": fmt.Sprintf("%016X", f.opts.TCB), "cacheControl": "86400",
		})
	default:
		fail(http.StatusNotFound, "not_found", "no such document")
	}
}

// cache serves GET /SevSnpVM/certificates/CHIP/TCB.
func (f *Fake) cache(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) != 4 || f.opts.Chain == nil || !strings.EqualFold(parts[3], fmt.Sprintf("%016x", f.opts.TCB)) {
		refuse(w, http.StatusNotFound, "NotFound", "no certificate of this chip and patch level")
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = bytes.NewReader(f.opts.Chain).WriteTo(w)
}
