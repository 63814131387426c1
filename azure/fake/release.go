// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/release"
)

// releaseBody is the body of a release.
type releaseBody struct {
	Target string     `json:"target"`
	Enc    kwp.Scheme `json:"enc"`
	Nonce  string     `json:"nonce,omitempty"`
}

// released serves a release: token, policy, wrapping, JWS.
func (f *Fake) released(w http.ResponseWriter, r *http.Request, k *key, name string) {
	var b releaseBody
	if !read(w, r, &b) {
		return
	}
	if b.Enc == "" {
		b.Enc = kwp.RSAAES
	}
	claims, err := f.verified(b.Target)
	if err != nil {
		refuse(w, http.StatusForbidden, "Forbidden", "%v", err)
		return
	}
	if err := f.judged(k, claims); err != nil {
		refuse(w, http.StatusForbidden, "Forbidden", "%v", err)
		return
	}
	to, err := wrappingKey(claims)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadParameter", "%v", err)
		return
	}
	blob, err := kwp.WrapRSA(b.Enc, to, k.Material)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadParameter", "%v", err)
		return
	}
	value, err := f.jws(r, f.payload(r, k, name, b, blob))
	if err != nil {
		refuse(w, http.StatusInternalServerError, "InternalError", "%v", err)
		return
	}
	answer(w, http.StatusOK, map[string]string{"value": value})
}

// judged evaluates the key's policy. The refusal names the conditions that do not hold.
func (f *Fake) judged(k *key, claims release.Claims) error {
	if k.Policy == nil {
		return errors.New("the key is not exportable")
	}
	p, err := k.Policy.Open()
	if err != nil {
		return err
	}
	result := p.Evaluate(claims)
	if result.Verdict == release.Yes {
		return nil
	}
	var failed []string
	for _, l := range result.Leaves() {
		if l.Verdict != release.Yes {
			failed = append(failed, l.Condition+": "+l.By)
		}
	}
	return fmt.Errorf("target environment attestation does not satisfy the key's release policy: %s",
		strings.Join(failed, "; "))
}

// wrappingKey is the key in the token's runtime data.
func wrappingKey(c release.Claims) (*rsa.PublicKey, error) {
	text, err := json.Marshal(c.Values["x-ms-runtime"])
	if err != nil {
		return nil, err
	}
	var runtime struct {
		Keys []struct {
			KTY, N, E string
			Ops       []string `json:"key_ops"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(text, &runtime); err != nil || len(runtime.Keys) == 0 {
		return nil, errors.New("the target has no key in x-ms-runtime.keys to wrap for")
	}
	k := runtime.Keys[0]
	again, err := json.Marshal(map[string]string{
		"kty": k.KTY, "n": strings.TrimRight(k.N, "="), "e": strings.TrimRight(k.E, "="),
	})
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(again); err != nil {
		return nil, fmt.Errorf("the key in x-ms-runtime.keys: %w", err)
	}
	pub, ok := jwk.Key.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the key in x-ms-runtime.keys is not RSA")
	}
	return pub, nil
}

// payload is the content of the JWS, with the lies that the test asks for.
func (f *Fake) payload(r *http.Request, k *key, name string, b releaseBody, blob []byte) map[string]any {
	if f.lies(r, BadCheck) {
		blob[len(blob)-1] ^= 1
	}
	if f.lies(r, ShortBlob) {
		blob = blob[:128]
	}
	bundle := f.bundle(r, k, name)
	jwk, _ := bundle["key"].(map[string]any)
	id, _ := jwk["kid"].(string)
	if f.lies(r, OtherKID) {
		id = f.URL(service(r)) + "/keys/other/" + k.Version
	}
	enc := b.Enc
	if f.lies(r, OtherWrap) {
		enc = "RSA1_5"
	}
	inner, err := json.Marshal(akv.Wrapped{
		Ciphertext: b64(blob), Header: akv.WrappedHeader{Alg: "dir", Enc: enc, KID: id}, Schema: "1.0",
	})
	if err != nil {
		inner = nil
	}
	jwk["kid"], jwk["key_hsm"] = id, b64(inner)
	asked := f.URL(service(r)) + strings.TrimSuffix(strings.TrimSuffix(r.URL.Path, "/"), "/release")
	request := map[string]string{
		"api-version": r.URL.Query().Get("api-version"), "enc": string(b.Enc), "kid": strings.TrimSuffix(asked, "/"),
	}
	if b.Nonce != "" {
		request["nonce"] = b.Nonce
	}
	if f.lies(r, OtherNonce) {
		request["nonce"] = "another"
	}
	return map[string]any{"request": request, "response": map[string]any{"key": bundle}}
}

// jws signs with a certificate for the vault's host.
func (f *Fake) jws(r *http.Request, payload map[string]any) (string, error) {
	text, err := json.Marshal(payload)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(f.URL(service(r)))
	if err != nil {
		return "", err
	}
	host, now := u.Hostname(), f.opts.Now()
	from, until := now.Add(-time.Minute), now.AddDate(1, 0, 0)
	if f.lies(r, OtherName) {
		host = "other.example"
	}
	if f.lies(r, OldChain) {
		from, until = now.Add(-time.Hour), now.Add(-time.Minute)
	}
	der, err := f.state.leaf(host, from, until, f.state.signer.Public())
	if err != nil {
		return "", err
	}
	std := base64.StdEncoding.EncodeToString
	opts := (&jose.SignerOptions{}).WithHeader("x5c", []string{std(der), std(f.state.CACert)}).
		WithHeader("kid", kid(&f.state.signer.PublicKey))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: f.state.signer}, opts)
	if err != nil {
		return "", err
	}
	s, err := signer.Sign(text)
	if err != nil {
		return "", err
	}
	out, err := s.CompactSerialize()
	if err == nil && f.lies(r, Altered) {
		head, rest, _ := strings.Cut(out, ".")
		body, sig, _ := strings.Cut(rest, ".")
		b, errDecode := base64.RawURLEncoding.DecodeString(body)
		if errDecode != nil {
			return "", errDecode
		}
		return head + "." + b64([]byte(strings.Replace(string(b), `"exportable":true`, `"exportable":null`, 1))) + "." + sig, nil
	}
	return out, err
}
