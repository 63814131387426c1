// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package akv

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/release"
)

// Request is our request, as the vault repeats it.
type Request struct {
	Version string     `json:"api-version"`
	Wrap    kwp.Scheme `json:"enc"`
	KID     string     `json:"kid"`
	Nonce   string     `json:"nonce"`
}

// JWK is the public half of a released key, with the wrapped private half.
type JWK struct {
	KID string   `json:"kid"`
	KTY string   `json:"kty"`
	Ops []string `json:"key_ops,omitempty"`
	N   string   `json:"n,omitempty"`
	E   string   `json:"e,omitempty"`
	Crv string   `json:"crv,omitempty"`
	X   string   `json:"x,omitempty"`
	Y   string   `json:"y,omitempty"`
	HSM string   `json:"key_hsm,omitempty"`
}

// Wrapped is the JSON in key_hsm.
type Wrapped struct {
	Ciphertext string        `json:"ciphertext"`
	Header     WrappedHeader `json:"header"`
	Schema     string        `json:"schema_version"`
}

// WrappedHeader says how the key was wrapped.
type WrappedHeader struct {
	Alg string     `json:"alg"`
	Enc kwp.Scheme `json:"enc"`
	KID string     `json:"kid"`
}

// Released is a verified answer.
type Released struct {
	Request Request
	JWK     JWK
	Policy  *release.Envelope
	// Clock is whose clock the certificates were judged by: "guest" or "service".
	Clock string
}

// payload is the content of the vault's JWS.
type payload struct {
	Request  Request `json:"request"`
	Response struct {
		Key struct {
			Key    JWK               `json:"key"`
			Policy *release.Envelope `json:"release_policy"`
		} `json:"key"`
	} `json:"response"`
}

const maxJWS = 512 << 10

// Verify checks the JWS of a release: signature, certificates at the given time, and that it answers our request.
func Verify(jws string, want Request, roots *x509.CertPool, at azhttp.Time) (*Released, error) {
	if len(jws) > maxJWS {
		return nil, fmt.Errorf("the vault's JWS has more than %d bytes", maxJWS)
	}
	kid, err := ParseKeyID(want.KID)
	if err != nil {
		return nil, err
	}
	s, err := jose.ParseSignedCompact(jws, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return nil, fmt.Errorf("the vault's answer is no JWS that is signed with RS256: %w", err)
	}
	chains, err := s.Signatures[0].Header.Certificates(x509.VerifyOptions{
		DNSName: kid.host(), Roots: roots, CurrentTime: at.At, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("certificates of the vault's JWS (by the %s's clock): %w", at.Source, err)
	}
	b, err := s.Verify(chains[0][0].PublicKey)
	if err != nil {
		return nil, errors.New("the vault's JWS was not signed by the key of its certificate")
	}
	var p payload
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("payload of the vault's JWS: %w", err)
	}
	if err := answers(p, want, kid); err != nil {
		return nil, err
	}
	return &Released{want, p.Response.Key.Key, p.Response.Key.Policy, at.Source}, nil
}

// answers compares the payload with our request.
func answers(p payload, want Request, kid KeyID) error {
	for _, f := range []struct{ name, got, want string }{
		{"api-version", p.Request.Version, want.Version},
		{"enc", string(p.Request.Wrap), string(want.Wrap)},
		{"nonce", p.Request.Nonce, want.Nonce},
	} {
		if f.got != f.want {
			return fmt.Errorf("the vault's JWS answers another request: its %s is %.80q and not %q", f.name, f.got, f.want)
		}
	}
	for name, text := range map[string]string{"request": p.Request.KID, "key": p.Response.Key.Key.KID} {
		got, err := ParseKeyID(text)
		if err != nil || !sameKey(kid, got) {
			return fmt.Errorf("the vault's JWS is about another key: the kid of its %s is %.200q, and %s was asked for",
				name, text, kid)
		}
	}
	return nil
}

// sameKey compares keys. Without a version any is the right one. Names of keys and hosts have no case.
func sameKey(want, got KeyID) bool {
	a, errA := url.Parse(want.Vault)
	b, errB := url.Parse(got.Vault)
	return errA == nil && errB == nil && strings.EqualFold(a.Host, b.Host) && strings.EqualFold(want.Name, got.Name) &&
		(want.Version == "" || strings.EqualFold(want.Version, got.Version))
}

// Key is a released key. Material is secret: wipe it with Wipe.
type Key struct {
	KID string
	// Kind is "oct", "RSA" or "EC".
	Kind string
	Ops  []string // what the vault says that the key is for
	// Material are the bytes of a symmetric key, or PKCS #8.
	Material []byte
	Policy   *release.Envelope
	Clock    string
}

// String hides the key.
func (k *Key) String() string { return "[key " + k.KID + ", redacted]" }

// GoString hides the key.
func (k *Key) GoString() string { return k.String() }

// Wipe clears the key.
func (k *Key) Wipe() { clear(k.Material) }

// Unwrap opens the wrapped key.
func (r *Released) Unwrap(with *rsa.PrivateKey) (*Key, error) {
	inner, err := release.Base64(r.JWK.HSM)
	if err != nil {
		return nil, fmt.Errorf("key_hsm: %w", err)
	}
	var w Wrapped
	if err := json.Unmarshal(inner, &w); err != nil {
		return nil, fmt.Errorf("key_hsm: %w", err)
	}
	if w.Header.Enc != r.Request.Wrap || w.Header.Alg != "dir" {
		return nil, fmt.Errorf("key_hsm is wrapped by %.40q/%.40q, and dir/%s was asked for", w.Header.Alg, w.Header.Enc,
			r.Request.Wrap)
	}
	blob, err := release.Base64(w.Ciphertext)
	if err != nil {
		return nil, fmt.Errorf("key_hsm: ciphertext: %w", err)
	}
	material, err := kwp.UnwrapRSA(r.Request.Wrap, with, blob)
	if err != nil {
		return nil, err
	}
	k := &Key{
		KID: r.JWK.KID, Kind: strings.TrimSuffix(r.JWK.KTY, "-HSM"), Ops: r.JWK.Ops, Material: material, Policy: r.Policy,
		Clock: r.Clock,
	}
	if err := k.check(r.JWK); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// check compares the key with its kind, and with the public half in the answer.
func (k *Key) check(public JWK) error {
	if k.Kind == "oct" {
		switch len(k.Material) {
		case 16, 24, 32, 64:
			return nil
		}
		return fmt.Errorf("the released key has %d bytes, which no AES key has", len(k.Material))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(k.Material)
	if err != nil {
		return errors.New("the released key is not PKCS #8") // the cause could tell of the key
	}
	var want jose.JSONWebKey
	text, err := json.Marshal(JWK{KTY: k.Kind, N: public.N, E: public.E, Crv: public.Crv, X: public.X, Y: public.Y})
	if err == nil {
		err = want.UnmarshalJSON(bytes.ReplaceAll(text, []byte("="), nil))
	}
	if err != nil {
		return fmt.Errorf("the public half of the key in the answer: %w", err)
	}
	var got crypto.PublicKey
	switch p := parsed.(type) {
	case *rsa.PrivateKey:
		got = &p.PublicKey
	case *ecdsa.PrivateKey:
		got = &p.PublicKey
	default:
		return fmt.Errorf("the released key is a %T", parsed)
	}
	if same, ok := got.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(want.Key) {
		return errors.New("the released key does not belong to the public half in the answer")
	}
	return nil
}
