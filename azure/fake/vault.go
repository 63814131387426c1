// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/azure/release"
)

// audiences are the resources whose bearer tokens are taken.
var audiences = map[Service]string{Vault: "https://vault.azure.net", HSM: "https://managedhsm.azure.net"}

// audience is the resource that a challenge names. At Azure it is one for all vaults; the host of a fake does not lie
// in its domain, and clients that look at that are right. So the fake's own host is named, and both are taken.
func (f *Fake) audience(r *http.Request) string {
	if f.lies(r, NoAudience) {
		return "https://graph.example"
	}
	u, err := url.Parse(f.URL(service(r)))
	if err != nil {
		return ""
	}
	return "https://" + u.Hostname()
}

// authorized checks the bearer token, or asks for one.
func (f *Fake) authorized(w http.ResponseWriter, r *http.Request) bool {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	f.mu.Lock()
	b, ok := f.tokens[token]
	f.mu.Unlock()
	u, err := url.Parse(b.resource)
	own, errOwn := url.Parse(f.URL(service(r)))
	right := err == nil && errOwn == nil && (b.resource == audiences[service(r)] || u.Hostname() == own.Hostname())
	if ok && right && f.opts.Now().Before(b.until) {
		return true
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization="%s/tenant", resource=%q`, f.URL(Entra), f.audience(r)))
	refuse(w, http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
	return false
}

var name = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)

// vault serves a vault or a managed HSM.
func (f *Fake) vault(w http.ResponseWriter, r *http.Request) {
	if !f.authorized(w, r) {
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) < 2 || parts[0] != "keys" || !name.MatchString(parts[1]) || r.URL.Query().Get("api-version") == "" {
		refuse(w, http.StatusBadRequest, "BadParameter", "%.100q is no path of keys, or api-version is missing", r.URL.Path)
		return
	}
	id, version, call := string(service(r))+"/"+strings.ToLower(parts[1]), "", ""
	if len(parts) > 2 {
		version = parts[2]
	}
	if last := parts[len(parts)-1]; last == "release" {
		call, version = last, strings.TrimSuffix(version, "release")
	}
	switch {
	case r.Method == http.MethodPut && len(parts) == 2:
		f.imported(w, r, id, parts[1])
		return
	case r.Method == http.MethodPost && call == "release", r.Method == http.MethodGet && call == "",
		r.Method == http.MethodPatch && call == "":
	default:
		refuse(w, http.StatusMethodNotAllowed, "BadParameter", "%s %.100q is not served", r.Method, r.URL.Path)
		return
	}
	f.mu.Lock()
	k := f.state.Keys[id]
	f.mu.Unlock()
	if k == nil || version != "" && version != k.Version {
		refuse(w, http.StatusNotFound, "KeyNotFound", "A key with (name/id) %s was not found in this key vault.", parts[1])
		return
	}
	switch r.Method {
	case http.MethodGet:
		answer(w, http.StatusOK, f.bundle(r, k, parts[1]))
	case http.MethodPatch:
		f.updated(w, r, k, id, parts[1])
	default:
		f.released(w, r, k, parts[1])
	}
}

// bundle is how a vault shows a key.
func (f *Fake) bundle(r *http.Request, k *key, name string) map[string]any {
	jwk := map[string]any{}
	for n, v := range k.JWK {
		jwk[n] = v
	}
	jwk["kid"] = f.URL(service(r)) + "/keys/" + name + "/" + k.Version
	out := map[string]any{"key": jwk, "attributes": map[string]any{
		"enabled": true, "exportable": k.Exportable, "created": k.Created, "updated": k.Created, "recoveryLevel": "Purgeable",
	}}
	if k.Policy != nil {
		out["release_policy"] = k.Policy
	}
	return out
}

// importBody is the body of an import and of an update.
type importBody struct {
	Key        json.RawMessage `json:"key"`
	Attributes struct {
		Exportable bool `json:"exportable"`
	} `json:"attributes"`
	Policy *release.Envelope `json:"release_policy"`
}

func (f *Fake) imported(w http.ResponseWriter, r *http.Request, id, name string) {
	var b importBody
	if !read(w, r, &b) {
		return
	}
	k, err := parseKey(b.Key)
	if err == nil {
		err = checkPolicy(b.Policy, b.Attributes.Exportable)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadParameter", "%v", err)
		return
	}
	k.Exportable, k.Policy, k.Version, k.Created = b.Attributes.Exportable, b.Policy, random(16), f.opts.Now().Unix()
	f.mu.Lock()
	old := f.state.Keys[id]
	if old != nil && old.Policy != nil && old.Policy.Immutable {
		f.mu.Unlock()
		refuse(w, http.StatusForbidden, "Forbidden", "the release policy of this key is immutable")
		return
	}
	f.state.Keys[id] = k
	err = f.save()
	f.mu.Unlock()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "InternalError", "%v", err)
		return
	}
	answer(w, http.StatusOK, f.bundle(r, k, name))
}

func checkPolicy(e *release.Envelope, exportable bool) error {
	if (e != nil) != exportable {
		return errors.New("an exportable key has a release policy, and no other key has one")
	}
	if e == nil {
		return nil
	}
	if _, err := e.Open(); err != nil {
		return fmt.Errorf("release policy: %w", err)
	}
	return nil
}

func (f *Fake) updated(w http.ResponseWriter, r *http.Request, k *key, id, name string) {
	var b importBody
	if !read(w, r, &b) {
		return
	}
	if b.Policy != nil {
		if err := checkPolicy(b.Policy, k.Exportable); err != nil {
			refuse(w, http.StatusBadRequest, "BadParameter", "%v", err)
			return
		}
		f.mu.Lock()
		if k = f.state.Keys[id]; k.Policy.Immutable {
			f.mu.Unlock()
			refuse(w, http.StatusForbidden, "Forbidden", "the release policy of this key is immutable")
			return
		}
		changed := *k // others may read the old one
		changed.Policy, k = b.Policy, &changed
		f.state.Keys[id] = k
		err := f.save()
		f.mu.Unlock()
		if err != nil {
			refuse(w, http.StatusInternalServerError, "InternalError", "%v", err)
			return
		}
	}
	answer(w, http.StatusOK, f.bundle(r, k, name))
}

// parseKey reads the private JWK of an import.
func parseKey(text []byte) (*key, error) {
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	kty, _ := m["kty"].(string)
	bare := map[string]any{"kty": strings.TrimSuffix(kty, "-HSM")}
	for _, n := range []string{"n", "e", "d", "p", "q", "dp", "dq", "qi", "k", "crv", "x", "y"} {
		if s, ok := m[n].(string); ok {
			bare[n] = strings.TrimRight(s, "=")
		}
	}
	again, err := json.Marshal(bare)
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(again); err != nil {
		return nil, errors.New("key: no JWK with a private part")
	}
	k := &key{Kind: kty, JWK: map[string]any{"kty": kty, "key_ops": m["key_ops"]}}
	switch p := jwk.Key.(type) {
	case []byte:
		k.Material = p
		return k, nil
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
		if k.Material, err = x509.MarshalPKCS8PrivateKey(p); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("key: neither RSA, nor EC, nor oct with a private part")
	}
	for _, n := range []string{"n", "e", "crv", "x", "y"} {
		if v, ok := bare[n]; ok {
			k.JWK[n] = v
		}
	}
	return k, nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
