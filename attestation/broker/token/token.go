// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package token makes and checks the tokens of a key broker.
//
// A Signer signs statements on evidence (EAR) with ES256. Its keys rotate: a new key is published for a while before it
// signs, and an old one for as long as its last token may live. Verifiers find the keys as JWK set and through OIDC
// discovery.
//
// Tokens of administrators come from a signer of their own with another issuer and audience, or from issuers that the
// configuration names (Issuer). A token names its algorithm, and that must be one of the issuer's: "none" and
// algorithms with shared keys are never taken.
package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Errors of tokens.
var (
	ErrExpired = errors.New("the token has expired")
	ErrInvalid = errors.New("the token is not valid")
)

// leeway is how far the clocks of broker and issuer may differ.
const leeway = 30 * time.Second

// maxToken bounds what is parsed.
const maxToken = 128 << 10

// Key is a signing key with the time at which it was made.
type Key struct {
	Made    time.Time
	private *ecdsa.PrivateKey
	id      string
}

// NewKey makes a key.
func NewKey(now time.Time) (*Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return withID(private, now)
}

// ParseKey reads what Marshal has written.
func ParseKey(der []byte, made time.Time) (*Key, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	private, ok := k.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, errors.New("a signing key is no key of P-256")
	}
	return withID(private, made)
}

func withID(private *ecdsa.PrivateKey, made time.Time) (*Key, error) {
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &Key{made, private, base64.RawURLEncoding.EncodeToString(sum[:12])}, nil
}

// Marshal returns the private key.
func (k *Key) Marshal() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k.private) }

func (k *Key) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: string(jose.ES256), Use: "sig"}
}

// Signer signs with the newest key that was published long enough.
type Signer struct {
	Issuer string
	// Lead is how long a key is published before it signs, unless it is the only one.
	Lead time.Duration
	Now  func() time.Time

	mu   sync.Mutex
	keys []*Key // oldest first
}

// SetKeys replaces the keys.
func (s *Signer) SetKeys(keys []*Key) {
	keys = slices.SortedFunc(slices.Values(keys), func(a, b *Key) int { return a.Made.Compare(b.Made) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// Newest returns when the newest key was made.
func (s *Signer) Newest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return time.Time{}
	}
	return s.keys[len(s.keys)-1].Made
}

func (s *Signer) current() (*Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return nil, errors.New("the broker has no signing key")
	}
	old := s.Now().Add(-s.Lead)
	for _, k := range slices.Backward(s.keys) {
		if !k.Made.After(old) {
			return k, nil
		}
	}
	return s.keys[0], nil
}

// Sign signs claims for a time. It adds iss, iat, nbf and exp.
func (s *Signer) Sign(claims map[string]any, life time.Duration) (string, error) {
	k, err := s.current()
	if err != nil {
		return "", err
	}
	jwk := k.jwk()
	opts := (&jose.SignerOptions{}).WithType("JWT").WithHeader("jwk", jwk).WithHeader("kid", k.id)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k.private}, opts)
	if err != nil {
		return "", err
	}
	now := s.Now().Unix()
	claims["iss"], claims["iat"], claims["nbf"] = s.Issuer, now, now
	claims["exp"] = now + int64(life/time.Second)
	return jwt.Signed(signer).Claims(claims).Serialize()
}

// Set returns the JWK set.
func (s *Signer) Set() jose.JSONWebKeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range s.keys {
		set.Keys = append(set.Keys, k.jwk())
	}
	return set
}

// Verify checks a token of this signer.
func (s *Signer) Verify(text, audience string) (map[string]any, error) {
	i := Issuer{
		Name: s.Issuer, Audience: audience, Keys: s.Set(),
		Algorithms: []jose.SignatureAlgorithm{jose.ES256}, Now: s.Now,
	}
	return i.Verify(text)
}

// Issuer is someone whose tokens are accepted.
type Issuer struct {
	Name string
	// Audience must be among the token's; empty does not look at it.
	Audience   string
	Keys       jose.JSONWebKeySet
	Algorithms []jose.SignatureAlgorithm
	Now        func() time.Time
}

// Asymmetric are the algorithms that an issuer of the configuration may use.
var Asymmetric = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
}

// Verify checks a token, and returns its claims. The key is one of the issuer's: keys and
// addresses in the token's own header are not used.
func (i Issuer) Verify(text string) (map[string]any, error) {
	if len(text) > maxToken {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrInvalid, maxToken)
	}
	t, err := jwt.ParseSigned(text, i.Algorithms)
	if err != nil || len(t.Headers) != 1 {
		return nil, fmt.Errorf("%w: no JWT with an accepted algorithm", ErrInvalid)
	}
	var std jwt.Claims
	claims := map[string]any{}
	found := false
	for _, k := range i.Keys.Keys {
		if id := t.Headers[0].KeyID; id != "" && k.KeyID != "" && id != k.KeyID {
			continue
		}
		if k.Algorithm != "" && k.Algorithm != t.Headers[0].Algorithm {
			continue
		}
		if t.Claims(k.Key, &std, &claims) == nil {
			found = true
			break
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: no key of %s has signed it", ErrInvalid, i.Name)
	}
	want := jwt.Expected{Issuer: i.Name, Time: i.Now()}
	if i.Audience != "" {
		want.AnyAudience = jwt.Audience{i.Audience}
	}
	if std.Expiry == nil {
		return nil, fmt.Errorf("%w: it never expires", ErrInvalid)
	}
	err = std.ValidateWithLeeway(want, leeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return nil, ErrExpired
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return claims, nil
}

// ParseSet reads a JWK set without private or shared keys.
func ParseSet(b []byte) (jose.JSONWebKeySet, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(b, &set); err != nil {
		return set, err
	}
	for _, k := range set.Keys {
		if !k.Valid() || !k.IsPublic() {
			return set, fmt.Errorf("key %.40q is no public key", k.KeyID)
		}
	}
	if len(set.Keys) == 0 {
		return set, errors.New("no key")
	}
	return set, nil
}
