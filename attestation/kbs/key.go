// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/internal/strictjson"
)

// Kind is a kind of the guest's key, by CoCo's name in aa.toml (tee_key_algorithm).
type Kind string

// Kinds of keys. The zero Kind is P256.
const (
	P256 Kind = "ECDH-ES+A256KW-P256"
	P521 Kind = "ECDH-ES+A256KW-P521"
	RSA  Kind = "RSA-OAEP-256"
)

// Check refuses kinds that are not known.
func (k Kind) Check() error {
	switch k {
	case "", P256, P521, RSA:
		return nil
	}
	return fmt.Errorf("kind of key %q: known are %s, %s and %s", k, P256, P521, RSA)
}

const (
	algECDH = "ECDH-ES+A256KW"
	algRSA  = "RSA-OAEP-256"

	// rsaBits is the size of the keys that NewKey makes; keys from 2048 to maxRSABits bits are read.
	rsaBits    = 3072
	minRSABits = 2048
	maxRSABits = 8192
)

var b64 = base64.RawURLEncoding.Strict()

// Key is the private key of a guest for one session.
type Key struct {
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey
}

// NewKey makes a key.
func NewKey(k Kind) (*Key, error) {
	if err := k.Check(); err != nil {
		return nil, err
	}
	var err error
	key := &Key{}
	switch k {
	case RSA:
		key.rsa, err = rsa.GenerateKey(rand.Reader, rsaBits)
	case P521:
		key.ec, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		key.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return key, err
}

// Public returns the public half.
func (k *Key) Public() *PublicKey {
	if k.rsa != nil {
		return &PublicKey{rsa: &k.rsa.PublicKey}
	}
	return &PublicKey{ec: &k.ec.PublicKey}
}

// PEM returns the private key as CoCo's attestation agent hands it out: PKCS #8 for curves, PKCS #1 for RSA.
func (k *Key) PEM() ([]byte, error) {
	if k.rsa != nil {
		return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k.rsa)}), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.ec)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// String hides the key.
func (k *Key) String() string { return "[redacted]" }

// GoString hides the key.
func (k *Key) GoString() string { return "[redacted]" }

// PublicKey is the key of a guest that resources are encrypted to.
type PublicKey struct {
	ec  *ecdsa.PublicKey
	rsa *rsa.PublicKey
}

// curve is what the protocol says of a curve.
type curve struct {
	name string
	size int // bytes of a coordinate
	ec   elliptic.Curve
}

var curves = []curve{{"P-256", 32, elliptic.P256()}, {"P-521", 66, elliptic.P521()}}

// curveOf looks for a curve by its name or itself.
func curveOf(name string, c elliptic.Curve) (curve, error) {
	for _, known := range curves {
		if known.name == name || c != nil && known.ec == c {
			return known, nil
		}
	}
	return curve{}, fmt.Errorf("curve %.20q: known are P-256 and P-521", name)
}

// ParsePublicKey reads a JWK. It has exactly the members that its kind needs: the digest covers no others.
func ParsePublicKey(b []byte) (*PublicKey, error) {
	m, err := strictjson.Parse(b)
	if err != nil {
		return nil, err
	}
	var kind string
	if err := m.Text("kty", &kind); err != nil {
		return nil, err
	}
	switch kind {
	case "EC":
		return parseEC(b)
	case "RSA":
		return parseRSA(b)
	}
	return nil, fmt.Errorf("kty %.20q: known are EC and RSA", kind)
}

// strings reads an object of strings with exactly these members.
func stringsOf(b []byte, names ...string) (map[string]string, error) {
	m, err := strictjson.Only(b, names...)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range names {
		var s string
		if err := m.Text(name, &s); err != nil {
			return nil, err
		}
		out[name] = s
	}
	return out, nil
}

func parseEC(b []byte) (*PublicKey, error) {
	m, err := stringsOf(b, "kty", "crv", "alg", "x", "y")
	if err != nil {
		return nil, err
	}
	if m["alg"] != algECDH {
		return nil, fmt.Errorf("alg %.30q: a key on a curve takes %s", m["alg"], algECDH)
	}
	k, err := parsePoint(m["crv"], m["x"], m["y"])
	return &PublicKey{ec: k}, err
}

// parsePoint reads a point of a curve. Coordinates have leading zeros.
func parsePoint(name, xText, yText string) (*ecdsa.PublicKey, error) {
	c, err := curveOf(name, nil)
	if err != nil {
		return nil, err
	}
	x, errX := b64.DecodeString(xText)
	y, errY := b64.DecodeString(yText)
	if errX != nil || errY != nil || len(x) != c.size || len(y) != c.size {
		return nil, fmt.Errorf("x and y are not %d bytes each in base64url", c.size)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(c.ec, append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, fmt.Errorf("x and y are no point of %s", name)
	}
	return k, nil
}

func parseRSA(b []byte) (*PublicKey, error) {
	m, err := stringsOf(b, "kty", "alg", "n", "e")
	if err != nil {
		return nil, err
	}
	if m["alg"] != algRSA {
		return nil, fmt.Errorf("alg %.30q: an RSA key takes %s", m["alg"], algRSA)
	}
	n, errN := b64.DecodeString(m["n"])
	e, errE := b64.DecodeString(m["e"])
	if errN != nil || errE != nil || len(n) == 0 || n[0] == 0 || len(e) == 0 || len(e) > 4 || e[0] == 0 {
		return nil, errors.New("n and e are not numbers in base64url without leading zeros")
	}
	k := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("an RSA key of %d bits: %d to %d are taken", bits, minRSABits, maxRSABits)
	}
	if k.E < 3 || k.E%2 == 0 || k.N.Bit(0) == 0 {
		return nil, errors.New("n or e is even, or e below 3")
	}
	return &PublicKey{rsa: k}, nil
}

// jwk returns the members of the JWK.
func (k *PublicKey) jwk() object {
	if k.rsa != nil {
		return object{
			"kty": "RSA", "alg": algRSA, "n": b64.EncodeToString(k.rsa.N.Bytes()),
			"e": b64.EncodeToString(big.NewInt(int64(k.rsa.E)).Bytes()),
		}
	}
	name, x, y := point(k.ec)
	return object{"kty": "EC", "crv": name, "alg": algECDH, "x": x, "y": y}
}

// point returns curve and coordinates of a key. Keys here are made by this package, on curves that it knows.
func point(k *ecdsa.PublicKey) (name, x, y string) {
	c, err := curveOf("", k.Curve)
	raw, errRaw := k.Bytes()
	if err != nil || errRaw != nil {
		return "", "", ""
	}
	return c.name, b64.EncodeToString(raw[1 : 1+c.size]), b64.EncodeToString(raw[1+c.size:])
}

// MarshalJSON writes the JWK.
func (k *PublicKey) MarshalJSON() ([]byte, error) { return json.Marshal(k.jwk()) }

func (k *PublicKey) ecdh() (*ecdh.PublicKey, error) { return k.ec.ECDH() }
