// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package akv releases keys from Azure Key Vault and Managed HSM.
//
// Release sends an attestation token, which is bound to the caller's RSA key. The vault answers with a JWS, which
// Verify checks: its certificate chain leads to the roots that the caller trusts and names the vault's host, it
// repeats our request with our nonce, and its key is the one that was asked for. Unwrap then opens the wrapped key,
// and compares it with the public half in the answer.
//
// The bearer token goes through the host's network. It lets its holder ask, and no more: the release policy of the key
// decides.
package akv

import (
	"context"
	"crypto/rand"
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

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/kwp"
)

// APIVersion is the version of the API that vaults and managed HSMs have in common.
const APIVersion = "7.4"

// Tokens gets a bearer token for a resource.
type Tokens interface {
	Token(ctx context.Context, resource string) (string, error)
}

// KeyID names a key.
type KeyID struct {
	Vault string // URL: https://NAME.vault.azure.net
	Name  string
	// Version may be empty: the newest.
	Version string
}

var word = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)

// ParseKeyID reads a key's URL.
func ParseKeyID(text string) (KeyID, error) {
	u, err := url.Parse(text)
	if err != nil {
		return KeyID{}, fmt.Errorf("key %.200q is no URL", text)
	}
	parts := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if len(parts) == 2 {
		parts = append(parts, "")
	}
	if u.Scheme != "https" || u.Host == "" || len(parts) != 3 || parts[0] != "keys" {
		return KeyID{}, fmt.Errorf("key %.200q is no https://VAULT/keys/NAME/VERSION", text)
	}
	k := KeyID{"https://" + u.Host, parts[1], parts[2]}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || k.check() != nil {
		return KeyID{}, fmt.Errorf("key %.200q is no https://VAULT/keys/NAME/VERSION", text)
	}
	return k, nil
}

func (k KeyID) check() error {
	if _, err := azhttp.Endpoint(k.Vault); err != nil {
		return fmt.Errorf("vault %w", err)
	}
	if !word.MatchString(k.Name) || k.Version != "" && !word.MatchString(k.Version) {
		return fmt.Errorf("key %.200q, version %.200q: letters, digits and dashes", k.Name, k.Version)
	}
	return nil
}

// String returns the key's URL.
func (k KeyID) String() string {
	s := strings.TrimRight(k.Vault, "/") + "/keys/" + k.Name
	if k.Version != "" {
		s += "/" + k.Version
	}
	return s
}

func (k KeyID) host() string {
	u, err := url.Parse(k.Vault)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// Client asks a vault or a managed HSM.
type Client struct {
	HTTP *azhttp.Client
	// Tokens are asked for the resource that the vault names. Nil sends no token.
	Tokens Tokens
	// Roots are the CAs of the JWS. Nil means the system's.
	Roots *x509.CertPool
}

// Ask is one request for a release.
type Ask struct {
	Key KeyID
	// Token is the attestation token.
	Token string
	// Wrap is the scheme in which the vault wraps the key.
	Wrap kwp.Scheme
}

// Release returns the key, unwrapped by the private half of the key to which the token is bound.
func (c *Client) Release(ctx context.Context, a Ask, with *rsa.PrivateKey) (*Key, error) {
	out, err := c.release(ctx, a, with)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", a.Key, err)
	}
	return out, nil
}

func (c *Client) release(ctx context.Context, a Ask, with *rsa.PrivateKey) (*Key, error) {
	if err := a.Key.check(); err != nil {
		return nil, err
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	want := Request{
		Version: APIVersion, Wrap: a.Wrap, KID: a.Key.String(), Nonce: base64.RawURLEncoding.EncodeToString(nonce[:]),
	}
	body, err := json.Marshal(map[string]string{"target": a.Token, "enc": string(a.Wrap), "nonce": want.Nonce})
	if err != nil {
		return nil, err
	}
	answer, err := c.send(ctx, azhttp.Request{
		Method: http.MethodPost, URL: a.Key.String() + "/release?api-version=" + APIVersion,
		Header: map[string]string{"Content-Type": "application/json"}, Body: body,
	}, a.Key.host())
	if err != nil {
		return nil, err
	}
	var value struct{ Value string }
	if err := json.Unmarshal(answer.Body, &value); err != nil || value.Value == "" {
		return nil, errors.New("the vault's answer has no value")
	}
	r, err := Verify(value.Value, want, c.Roots, answer.Time)
	if err != nil {
		return nil, err
	}
	return r.Unwrap(with)
}

// send sends a request, after asking for a bearer token where the vault wants one.
func (c *Client) send(ctx context.Context, r azhttp.Request, host string) (azhttp.Answer, error) {
	a, err := c.HTTP.Do(ctx, r)
	var e *azhttp.Error
	if err == nil || !errors.As(err, &e) || e.Status != http.StatusUnauthorized || c.Tokens == nil {
		return a, err
	}
	resource, err := audience(e.Header.Get("WWW-Authenticate"), host)
	if err != nil {
		return a, err
	}
	token, err := c.Tokens.Token(ctx, resource)
	if err != nil {
		return a, err
	}
	r.Header["Authorization"] = "Bearer " + token
	return c.HTTP.Do(ctx, r)
}

var parameter = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)

// audience reads the resource of a challenge. The vault's host must lie in the resource's domain: a token for another
// service must not come to this one.
func audience(challenge, host string) (string, error) {
	kind, list, _ := strings.Cut(challenge, " ")
	if !strings.EqualFold(kind, "Bearer") {
		return "", fmt.Errorf("the vault asks for %.60q and not for a bearer token", kind)
	}
	resource := ""
	for _, m := range parameter.FindAllStringSubmatch(list, -1) {
		if m[1] == "resource" || m[1] == "scope" && resource == "" {
			resource = strings.TrimSuffix(m[2], "/.default")
		}
	}
	u, err := url.Parse(resource)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", errors.New("the vault's challenge names no resource")
	}
	if host != u.Hostname() && !strings.HasSuffix(host, "."+u.Hostname()) {
		return "", fmt.Errorf("the vault %s asks for a token for %.100s, which is another service", host, u.Hostname())
	}
	return resource, nil
}
