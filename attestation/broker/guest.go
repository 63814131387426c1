// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/broker/session"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/policy/rego"
)

// Words with which Trustee begins its details. Scripts look for them.
const (
	authFailed   = "Attestation error: RCAR handshake Auth failed: "
	attestFailed = "Attestation error: RCAR handshake Attest failed: "
)

const pluginResource = "resource"

// auth opens a session.
func (b *Broker) auth(w http.ResponseWriter, r *http.Request) {
	text, ok := body(w, r)
	if !ok {
		b.counters.add("auth", "malformed")
		return
	}
	req, err := kbs.ParseRequest(text)
	if err != nil {
		b.counters.add("auth", "malformed")
		refuse(w, http.StatusBadRequest, kbs.SerdeError, authFailed+err.Error())
		return
	}
	if err := errors.Join(req.CheckVersion(), b.cfg.Evidence.Check(req.TEE)); err != nil {
		b.counters.add("auth", "refused")
		refuse(w, http.StatusBadRequest, kbs.AttestationError, authFailed+err.Error())
		return
	}
	s, err := b.sessions.Open(req.TEE, addrOf(r))
	switch {
	case errors.Is(err, session.ErrMany):
		b.counters.add("auth", "too-many")
		later(w, http.StatusTooManyRequests, 10*time.Second, kbs.AttestationError, authFailed+err.Error())
		return
	case err != nil:
		b.counters.add("auth", "full")
		later(w, http.StatusServiceUnavailable, 10*time.Second, kbs.AttestationError, authFailed+err.Error())
		return
	}
	b.counters.add("auth", "ok")
	setCookie(w, s)
	reply(w, kbs.Challenge{Nonce: s.Nonce})
}

func setCookie(w http.ResponseWriter, s *session.Session) {
	http.SetCookie(w, &http.Cookie{
		Name: kbs.Cookie, Value: s.ID, Expires: s.Expires, Path: kbs.Prefix, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteStrictMode,
	})
}

// cookieOf returns the session that a request names.
func cookieOf(r *http.Request) string {
	c, err := r.Cookie(kbs.Cookie)
	if err != nil {
		return ""
	}
	return c.Value
}

// attest judges evidence. The nonce of a session serves once.
func (b *Broker) attest(w http.ResponseWriter, r *http.Request) {
	text, ok := body(w, r)
	if !ok {
		b.counters.add("attest", "malformed")
		return
	}
	s, known, err := b.sessions.Claim(cookieOf(r), sha256.Sum256(text))
	switch {
	case errors.Is(err, session.ErrNone):
		b.counters.add("attest", "no-session")
		refuse(w, http.StatusUnauthorized, kbs.AttestationError, attestFailed+err.Error())
		return
	case err != nil:
		b.counters.add("attest", "conflict")
		b.recordRefusal("attest", "conflict", map[string]string{"address": addrOf(r), "reason": err.Error()})
		refuse(w, http.StatusConflict, kbs.AttestationError, attestFailed+err.Error())
		return
	}
	if known == "" {
		if known, ok = b.judge(w, r, s, text); !ok {
			return
		}
	}
	setCookie(w, s)
	reply(w, kbs.Token{Token: known})
}

// judge verifies and appraises the evidence of a session that has been claimed, and settles it. It answers refusals.
func (b *Broker) judge(w http.ResponseWriter, r *http.Request, s *session.Session, text []byte) (string, bool) {
	again, jwt := true, ""
	defer func() { b.sessions.Settle(s, jwt, again) }()
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	default:
		b.counters.add("attest", "busy")
		later(w, http.StatusServiceUnavailable, time.Second, kbs.AttestationError, attestFailed+"too many at once")
		return "", false
	}
	again = false
	a, err := kbs.ParseAttestation(text)
	if err != nil {
		b.counters.add("attest", "malformed")
		b.recordRefusal("attest", "malformed", map[string]string{"tee": s.TEE, "address": s.Addr, "reason": err.Error()})
		refuse(w, http.StatusBadRequest, kbs.SerdeError, attestFailed+err.Error())
		return "", false
	}
	e := seen{Time: b.cfg.Now().UTC(), TEE: s.TEE, Address: s.Addr}
	if jwt, err = b.tokenFor(r.Context(), s, a, &e); err == nil {
		b.counters.add("attest", e.Status)
		return jwt, true
	}
	e.Status, e.Reason = refused, err.Error()
	f, isFailure := attestation.FailureOf(err)
	again = isFailure && f.Code.Explain().Class == attestation.Unproven || errors.Is(err, rego.ErrTimeout)
	if isFailure {
		e.Code = string(f.Code)
	}
	b.history.add(e)
	b.note(e)
	if again {
		b.counters.add("attest", "unproven")
		later(w, http.StatusServiceUnavailable, 10*time.Second, kbs.AttestationError, attestFailed+err.Error())
		return "", false
	}
	b.counters.add("attest", "refused")
	refuse(w, http.StatusForbidden, kbs.AttestationError, attestFailed+err.Error())
	return "", false
}

// tokenFor verifies and appraises a message, and makes the token. Evidence that is genuine and not affirming gets a
// token that says so.
func (b *Broker) tokenFor(ctx context.Context, s *session.Session, a *kbs.Attestation, e *seen) (string, error) {
	if a.Nonce != s.Nonce {
		return "", errors.New("the nonce is not the one of this session")
	}
	input, err := b.verify(ctx, s.TEE, a)
	if err != nil {
		return "", err
	}
	rules := b.current()
	claims, appraisal, err := b.appraise(ctx, rules, s.TEE, input)
	if err != nil {
		return "", fmt.Errorf("attestation policy: %w", err)
	}
	e.Status, e.Vector, e.Reason = statusIn(claims), appraisal.Vector, b.explain(rules, appraisal, input)
	e.InitData, _ = input["init_data"].(string)
	if e.claims, err = json.Marshal(claims); err != nil {
		return "", err
	}
	claims["coco.attestation"] = b.history.add(*e)
	jwt, err := b.signer.Sign(claims, tokenLife)
	if err != nil {
		return "", err
	}
	b.note(*e)
	return jwt, nil
}

// refused is the status of evidence that does not hold.
const refused = "refused"

// note writes an attestation into audit and log.
func (b *Broker) note(e seen) {
	fields := map[string]string{"tee": e.TEE, "address": e.Address}
	for name, v := range map[string]string{
		"reason": e.Reason, "code": e.Code, "init_data": e.InitData, "notice": evidence.Notice(e.TEE),
	} {
		if v != "" {
			fields[name] = short(v)
		}
	}
	if e.Status == refused {
		b.recordRefusal("attest", e.Status, fields)
	} else {
		b.record("attest", e.Status, fields)
	}
	args := []any{"status", e.Status}
	for name, v := range fields {
		args = append(args, name, v)
	}
	b.cfg.Log.Info("attestation", args...)
}

// maxField bounds a field of an audit entry: evidence is a guest's text.
const maxField = 2048

func short(s string) string {
	if len(s) <= maxField {
		return s
	}
	return strings.ToValidUTF8(s[:maxField], "") + "…"
}

// resource releases a resource.
func (b *Broker) resource(w http.ResponseWriter, r *http.Request) {
	plugin, path := r.PathValue("plugin"), r.PathValue("path")
	claims, err := b.authenticate(r)
	if err != nil {
		of := kbs.TokenVerifierError
		if errors.Is(err, errNoToken) {
			of = kbs.TokenNotFound
		}
		b.counters.add("resource", "no-token")
		refuse(w, http.StatusUnauthorized, of, err.Error())
		return
	}
	allowed, err := b.allowed(r.Context(), b.current(), claims, plugin, path, r.URL.Query())
	if err != nil {
		b.cfg.Log.Error("resource policy", "error", err)
	}
	if errors.Is(err, rego.ErrTimeout) {
		b.counters.add("resource", "busy")
		later(w, http.StatusServiceUnavailable, time.Second, kbs.AttestationError, err.Error())
		return
	}
	b.history.asked(claims, plugin+"/"+path, allowed)
	fields := map[string]string{"resource": short(plugin + "/" + path), "address": addrOf(r)}
	if n, ok := claims["coco.attestation"].(float64); ok {
		fields["attestation"] = fmt.Sprint(uint64(n))
	}
	result := b.release(w, claims, plugin, path, allowed)
	b.counters.add("resource", result)
	b.record("resource", result, fields)
}

// errNoToken is Trustee's text, which clients look for.
//
//lint:ignore ST1005 the text is Trustee's
var errNoToken = errors.New("Attestation Token not found")

// authenticate returns the claims of the session's token, or of the one in the header.
func (b *Broker) authenticate(r *http.Request) (map[string]any, error) {
	var first error
	if t := b.sessions.Token(cookieOf(r)); t != "" {
		claims, err := b.signer.Verify(t, "")
		if err == nil {
			return claims, nil
		}
		first = err
	}
	t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case ok:
		return b.signer.Verify(t, "")
	case first != nil:
		return nil, first
	}
	return nil, errNoToken
}

// allowed asks the resource policy.
func (b *Broker) allowed(
	ctx context.Context, r rules, claims map[string]any, plugin, path string, query map[string][]string,
) (bool, error) {
	args := map[string]any{}
	for name, values := range query {
		args[name] = strings.Join(values, ",")
	}
	var parts []any
	for p := range strings.SplitSeq(path, "/") {
		parts = append(parts, p)
	}
	return r.resource.Allow(ctx, claims, map[string]any{"plugin": plugin, "resource-path": parts, "query": args})
}

// release answers with a resource, after the policy. It returns the result.
func (b *Broker) release(w http.ResponseWriter, claims map[string]any, plugin, path string, allowed bool) string {
	if !allowed {
		refuse(w, http.StatusForbidden, kbs.PolicyDeny, "Access denied by policy")
		return "denied"
	}
	if plugin != pluginResource {
		refuse(w, http.StatusNotFound, kbs.PluginNotFound, fmt.Sprintf("Plugin %s not found", plugin))
		return "absent"
	}
	if _, err := kbs.ParsePath(path); err != nil || strings.HasPrefix(path, "/") {
		refuse(w, http.StatusNotFound, kbs.InvalidRequestPath, "a resource has the path repository/type/tag")
		return "absent"
	}
	key, err := keyIn(claims)
	if err != nil {
		refuse(w, http.StatusForbidden, kbs.TokenVerifierError, "the token names no key of a guest: "+err.Error())
		return "denied"
	}
	secret, _, err := b.cfg.Store.Get(bucketResource, path)
	switch {
	case errors.Is(err, store.ErrNotFound):
		refuse(w, http.StatusNotFound, kbs.PluginInternal, "Plugin internal error: no resource "+path)
		return "absent"
	case err != nil:
		b.cfg.Log.Error("resource", "error", err)
		refuse(w, http.StatusInternalServerError, kbs.PluginInternal, "Plugin internal error")
		return "failed"
	}
	defer clear(secret)
	text, err := key.Seal(secret)
	if err != nil {
		refuse(w, http.StatusInternalServerError, kbs.JWEError, err.Error())
		return "failed"
	}
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(text) // the guest may be gone
	return "ok"
}
