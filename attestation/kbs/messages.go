// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	// Version is the version of the protocol that our client sends. Trustee takes this one only.
	Version = "0.4.0"
	// Prefix is where the routes of the protocol begin.
	Prefix = "/kbs/v0"
	// Cookie names the session.
	Cookie = "kbs-session-id"
	// NonceSize is the length of a nonce.
	NonceSize = 32
	// MaxBody is the longest message, and the longest resource.
	MaxBody = 2 << 20
)

// versions are the protocol versions that Request.Check accepts, without the number of the patch.
var versions = []string{"0.4"}

// Request is the first message.
type Request struct {
	Version string `json:"version"`
	TEE     string `json:"tee"`
	// ExtraParams is not read: it offers algorithms of which the TEEs here use one. It may be a string or an object.
	ExtraParams json.RawMessage `json:"extra-params"`
}

// NewRequest returns the request of a guest in a TEE.
func NewRequest(tee string) Request {
	return Request{Version: Version, TEE: tee, ExtraParams: json.RawMessage(`{}`)}
}

// ParseRequest reads a request. Members that it does not know are ignored: later versions announce more devices.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	m, err := strictjson.Parse(b)
	if err != nil {
		return r, err
	}
	if err := errors.Join(m.Text("version", &r.Version), m.Text("tee", &r.TEE)); err != nil {
		return r, err
	}
	r.ExtraParams = m["extra-params"]
	return r, nil
}

// CheckVersion refuses versions that are not spoken here, in the words of Trustee.
func (r Request) CheckVersion() error {
	parts := strings.SplitN(r.Version, ".", 3)
	if len(parts) == 3 && slices.Contains(versions, parts[0]+"."+parts[1]) && digits(parts[2]) {
		return nil
	}
	return fmt.Errorf("KBS Client Protocol Version Mismatch: expect =%s while the request is %q", Version, r.Version)
}

func digits(s string) bool {
	return s != "" && len(s) < 10 && strings.Trim(s, "0123456789") == ""
}

// Challenge is the answer to a Request.
type Challenge struct {
	Nonce       string `json:"nonce"`
	ExtraParams string `json:"extra-params"`
}

// ParseChallenge reads a challenge. The nonce must be 32 bytes in base64.
func ParseChallenge(b []byte) (Challenge, error) {
	var c Challenge
	m, err := strictjson.Parse(b)
	if err != nil {
		return c, err
	}
	if err := m.Text("nonce", &c.Nonce); err != nil {
		return c, err
	}
	return c, CheckNonce(c.Nonce)
}

// CheckNonce refuses what is not 32 bytes in base64, written in the one way that base64 has.
func CheckNonce(text string) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != NonceSize || base64.StdEncoding.EncodeToString(raw) != text {
		return fmt.Errorf("the nonce is not %d bytes in base64", NonceSize)
	}
	return nil
}

// Attestation is the message with the evidence.
type Attestation struct {
	// InitData is the text of the initdata document; empty if none was sent.
	InitData string
	Nonce    string
	Key      *PublicKey
	// Primary is the evidence of the TEE, Additional the evidence of devices as JSON in a string; empty without devices.
	Primary    json.RawMessage
	Additional string
}

// MarshalJSON writes the message.
func (a Attestation) MarshalJSON() ([]byte, error) {
	if a.Key == nil {
		return nil, errors.New("an attestation without a key")
	}
	m := object{
		"runtime-data": object{"nonce": a.Nonce, "tee-pubkey": a.Key.jwk()},
		"tee-evidence": map[string]any{"primary_evidence": a.Primary, "additional_evidence": a.Additional},
	}
	if a.InitData != "" {
		m["init-data"] = object{"format": "toml", "body": a.InitData}
	}
	return json.Marshal(m)
}

// ParseAttestation reads the message. Nothing in it is verified. Unknown members are refused, because the digest would
// not cover them.
func ParseAttestation(b []byte) (*Attestation, error) {
	if len(b) > MaxBody {
		return nil, fmt.Errorf("the message has more than %d bytes", MaxBody)
	}
	top, err := strictjson.Only(b, "init-data", "runtime-data", "tee-evidence")
	if err != nil {
		return nil, err
	}
	a := &Attestation{}
	if err := a.parseRuntime(top["runtime-data"]); err != nil {
		return nil, fmt.Errorf("runtime-data: %w", err)
	}
	if err := a.parseEvidence(top["tee-evidence"]); err != nil {
		return nil, fmt.Errorf("tee-evidence: %w", err)
	}
	if text := top["init-data"]; text != nil && string(text) != "null" {
		if err := a.parseInitData(text); err != nil {
			return nil, fmt.Errorf("init-data: %w", err)
		}
	}
	return a, nil
}

func (a *Attestation) parseRuntime(b []byte) error {
	m, err := strictjson.Only(b, "nonce", "tee-pubkey")
	if err != nil {
		return err
	}
	if err := m.Text("nonce", &a.Nonce); err != nil {
		return err
	}
	if a.Key, err = ParsePublicKey(m["tee-pubkey"]); err != nil {
		return fmt.Errorf("tee-pubkey: %w", err)
	}
	return CheckNonce(a.Nonce)
}

func (a *Attestation) parseEvidence(b []byte) error {
	m, err := strictjson.Only(b, "primary_evidence", "additional_evidence")
	if err != nil {
		return err
	}
	if a.Primary = m["primary_evidence"]; len(a.Primary) == 0 || string(a.Primary) == "null" {
		return errors.New("no primary_evidence")
	}
	if m["additional_evidence"] == nil {
		return nil
	}
	return m.Text("additional_evidence", &a.Additional)
}

func (a *Attestation) parseInitData(b []byte) error {
	m, err := strictjson.Only(b, "format", "body")
	if err != nil {
		return err
	}
	var format string
	if err := errors.Join(m.Text("format", &format), m.Text("body", &a.InitData)); err != nil {
		return err
	}
	if format != "toml" {
		return fmt.Errorf("format %q: known is toml", format)
	}
	if a.InitData == "" {
		return errors.New("the body is empty")
	}
	return nil
}

// Digest returns what the evidence must hold as REPORTDATA: SHA-384 over nonce, key and additional evidence in the
// canonical form of RFC 8785. SNP and TDX fill it with zeros to 64 bytes; a TPM takes the first 32.
func (a Attestation) Digest() ([48]byte, error) {
	if a.Key == nil {
		return [48]byte{}, errors.New("an attestation without a key")
	}
	text, err := canonical(object{
		"additional-evidence": a.Additional, "nonce": a.Nonce, "tee-pubkey": a.Key.jwk(),
	})
	return sha512.Sum384(text), err
}

// Token is the last message.
type Token struct {
	Token string `json:"token"`
}

// ParseToken reads the last message.
func ParseToken(b []byte) (Token, error) {
	var t Token
	m, err := strictjson.Parse(b)
	if err != nil {
		return t, err
	}
	if err := m.Text("token", &t.Token); err != nil {
		return t, err
	}
	if strings.Count(t.Token, ".") != 2 {
		return t, errors.New("the token is no JWT")
	}
	return t, nil
}
