// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/internal/strictjson"
)

// A resource travels as JWE in the flattened JSON form (RFC 7516, section 7.2.2), without an aad member.
const (
	encGCM  = "A256GCM"
	cekSize = 32
	ivSize  = 12
	tagSize = 16

	// maxJWE bounds what Open reads: a resource of MaxBody in base64, and the rest.
	maxJWE = MaxBody*4/3 + 16<<10
)

// errOpen tells nothing about the step that failed, so that no one can learn from it.
var errOpen = errors.New("the JWE is not for this key, or was changed")

// jwe is the message; its members are base64url.
type jwe struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// Seal encrypts to the key. Trustee's clients write the header anew before they check it, so its members must stand in
// the order alg, enc, epk{crv, kty, x, y}: that order is both the alphabet's and theirs.
func (k *PublicKey) Seal(plain []byte) ([]byte, error) {
	cek := make([]byte, cekSize)
	defer clear(cek)
	iv := make([]byte, ivSize)
	if _, err := rand.Read(cek); err != nil {
		return nil, err
	}
	if _, err := rand.Read(iv); err != nil {
		return nil, err
	}
	header, wrapped, err := k.wrap(cek)
	if err != nil {
		return nil, err
	}
	aead, err := gcm(cek)
	if err != nil {
		return nil, err
	}
	m := jwe{Protected: b64.EncodeToString([]byte(header))}
	sealed := aead.Seal(nil, iv, plain, []byte(m.Protected))
	at := len(sealed) - tagSize
	m.EncryptedKey, m.IV = b64.EncodeToString(wrapped), b64.EncodeToString(iv)
	m.Ciphertext, m.Tag = b64.EncodeToString(sealed[:at]), b64.EncodeToString(sealed[at:])
	return json.Marshal(m)
}

// wrap encrypts the content's key, and returns the header.
func (k *PublicKey) wrap(cek []byte) (header string, wrapped []byte, err error) {
	if k.rsa != nil {
		wrapped, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, k.rsa, cek, nil)
		return `{"alg":"` + algRSA + `","enc":"` + encGCM + `"}`, wrapped, err
	}
	once, err := ecdsa.GenerateKey(k.ec.Curve, rand.Reader)
	if err != nil {
		return "", nil, err
	}
	private, err := once.ECDH()
	if err != nil {
		return "", nil, err
	}
	public, err := k.ecdh()
	if err != nil {
		return "", nil, err
	}
	kek, err := agree(private, public)
	if err != nil {
		return "", nil, err
	}
	defer clear(kek)
	name, x, y := point(&once.PublicKey)
	header = fmt.Sprintf(`{"alg":"%s","enc":"%s","epk":{"crv":"%s","kty":"EC","x":"%s","y":"%s"}}`,
		algECDH, encGCM, name, x, y)
	wrapped, err = keyWrap(kek, cek)
	return header, wrapped, err
}

// Open decrypts a JWE. The header takes part in the check exactly as it was written.
func (k *Key) Open(text []byte) ([]byte, error) {
	if len(text) > maxJWE {
		return nil, fmt.Errorf("the JWE has more than %d bytes", maxJWE)
	}
	m, err := stringsOf(text, "protected", "encrypted_key", "iv", "ciphertext", "tag")
	if err != nil {
		return nil, fmt.Errorf("the JWE: %w", err)
	}
	raw := map[string][]byte{}
	for name, text := range m {
		if raw[name], err = b64.DecodeString(text); err != nil {
			return nil, fmt.Errorf("the JWE: %s is not base64url", name)
		}
	}
	if len(raw["iv"]) != ivSize || len(raw["tag"]) != tagSize {
		return nil, fmt.Errorf("the JWE: iv and tag are not %d and %d bytes", ivSize, tagSize)
	}
	cek, err := k.unwrap(raw["protected"], raw["encrypted_key"])
	if err != nil {
		return nil, err
	}
	defer clear(cek)
	aead, err := gcm(cek)
	if err != nil {
		return nil, errOpen
	}
	plain, err := aead.Open(nil, raw["iv"], append(raw["ciphertext"], raw["tag"]...), []byte(m["protected"]))
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

// unwrap decrypts the content's key as the header says. Members that are not known are refused: some would change how
// keys are derived.
func (k *Key) unwrap(header, wrapped []byte) ([]byte, error) {
	h, err := strictjson.Only(header, "alg", "enc", "epk")
	if err != nil {
		return nil, fmt.Errorf("the JWE's header: %w", err)
	}
	var alg, enc string
	if err := errors.Join(h.Text("alg", &alg), h.Text("enc", &enc)); err != nil {
		return nil, fmt.Errorf("the JWE's header: %w", err)
	}
	want := algECDH
	if k.rsa != nil {
		want = algRSA
	}
	if alg != want || enc != encGCM {
		return nil, fmt.Errorf("the JWE has alg %.30q and enc %.30q; this key takes %s and %s", alg, enc, want, encGCM)
	}
	if k.rsa != nil {
		cek, err := rsa.DecryptOAEP(sha256.New(), nil, k.rsa, wrapped, nil)
		if err != nil || len(cek) != cekSize {
			return nil, errOpen
		}
		return cek, nil
	}
	e, err := stringsOf(h["epk"], "crv", "kty", "x", "y")
	if err != nil {
		return nil, fmt.Errorf("the JWE's epk: %w", err)
	}
	once, err := parsePoint(e["crv"], e["x"], e["y"])
	if err != nil || e["kty"] != "EC" || once.Curve != k.ec.Curve {
		return nil, errors.New("the JWE's epk is no point of the key's curve")
	}
	public, err := once.ECDH()
	if err != nil {
		return nil, errOpen
	}
	private, err := k.ec.ECDH()
	if err != nil {
		return nil, errOpen
	}
	kek, err := agree(private, public)
	if err != nil {
		return nil, errOpen
	}
	defer clear(kek)
	return keyUnwrap(kek, wrapped)
}

// agree derives the key that wraps: Concat KDF of RFC 7518, section 4.6.2, with empty apu and apv.
func agree(private *ecdh.PrivateKey, public *ecdh.PublicKey) ([]byte, error) {
	z, err := private.ECDH(public)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	be := binary.BigEndian
	h := sha256.New()
	h.Write(be.AppendUint32(nil, 1)) // the only round: 256 bits are needed, and SHA-256 gives them
	h.Write(z)
	h.Write(be.AppendUint32(nil, uint32(len(algECDH))))
	h.Write([]byte(algECDH))
	h.Write(be.AppendUint32(nil, 0)) // apu
	h.Write(be.AppendUint32(nil, 0)) // apv
	h.Write(be.AppendUint32(nil, 256))
	return h.Sum(nil), nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// wrapIV is the initial value of RFC 3394, section 2.2.3.1.
const wrapIV = 0xA6A6A6A6A6A6A6A6

// keyWrap is the index form of RFC 3394, section 2.2.1.
func keyWrap(kek, key []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := len(key) / 8
	out := append(binary.BigEndian.AppendUint64(nil, wrapIV), key...)
	var buf [16]byte
	for t := range 6 * n {
		r := out[8*(t%n+1):][:8]
		copy(buf[:8], out)
		copy(buf[8:], r)
		block.Encrypt(buf[:], buf[:])
		a := binary.BigEndian.Uint64(buf[:8]) ^ uint64(t+1)
		binary.BigEndian.PutUint64(out, a)
		copy(r, buf[8:])
	}
	return out, nil
}

// keyUnwrap undoes keyWrap for a content's key, and checks it.
func keyUnwrap(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil || len(wrapped) != cekSize+8 {
		return nil, errOpen
	}
	n := cekSize / 8
	out := append([]byte(nil), wrapped...)
	var buf [16]byte
	for t := 6*n - 1; t >= 0; t-- {
		r := out[8*(t%n+1):][:8]
		a := binary.BigEndian.Uint64(out) ^ uint64(t+1)
		binary.BigEndian.PutUint64(buf[:], a)
		copy(buf[8:], r)
		block.Decrypt(buf[:], buf[:])
		copy(out, buf[:8])
		copy(r, buf[8:])
	}
	if subtle.ConstantTimeCompare(out[:8], binary.BigEndian.AppendUint64(nil, wrapIV)) != 1 {
		return nil, errOpen
	}
	return out[8:], nil
}
