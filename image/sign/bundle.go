// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	// BundleType is the media type of a bundle, and the artifact type of the manifest that refers from it to an image.
	BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	// PredicateAnnotation names the annotation with the type of the bundle's statement.
	PredicateAnnotation = "dev.sigstore.bundle.predicateType"
	// SignaturePredicate is cosign's statement that an image is signed.
	SignaturePredicate = "https://sigstore.dev/cosign/sign/v1"

	statementType = "https://in-toto.io/Statement/v1"
	envelopeType  = "application/vnd.in-toto+json"
	// referenceNote is the annotation of a subject that names the repository: cosign writes no name.
	referenceNote = "docker-reference"
)

// SignatureBundle signs an image, and writes the bundle.
func SignatureBundle(s Signer, i Image) ([]byte, error) {
	return newBundle(s, i, SignaturePredicate, struct{}{})
}

// CheckBundle checks a bundle of cosign's statement against an image.
func CheckBundle(k Key, text []byte, i Image) error {
	predicate, err := openBundle(k, text, i, SignaturePredicate)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSpace(predicate), []byte("{}")) {
		return errors.New("the predicate of a signature is not empty")
	}
	return nil
}

type subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

type statement struct {
	Type      string    `json:"_type"`
	Subject   []subject `json:"subject"`
	Kind      string    `json:"predicateType"`
	Predicate any       `json:"predicate"`
}

type signature struct {
	Sig   []byte `json:"sig"`
	KeyID string `json:"keyid,omitempty"`
}

type envelope struct {
	Payload    []byte      `json:"payload"`
	Type       string      `json:"payloadType"`
	Signatures []signature `json:"signatures"`
}

type bundle struct {
	MediaType string `json:"mediaType"`
	Material  struct {
		PublicKey struct {
			Hint string `json:"hint,omitempty"`
		} `json:"publicKey"`
	} `json:"verificationMaterial"`
	Envelope envelope `json:"dsseEnvelope"`
}

// newBundle signs a statement about an image.
func newBundle(s Signer, i Image, kind string, predicate any) ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(statement{
		statementType, []subject{{i.Repository, map[string]string{"sha256": i.Digest[len("sha256:"):]}}}, kind, predicate,
	})
	if err != nil {
		return nil, err
	}
	sig, err := s.Sign(pae(envelopeType, text))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return json.Marshal(bundle{MediaType: BundleType, Envelope: envelope{text, envelopeType, []signature{{Sig: sig}}}})
}

// pae returns the signed bytes: DSSE protocol, "pre-authentication encoding".
func pae(kind string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(kind), kind, len(payload)), payload...)
}

// openBundle checks a bundle against an image, and returns the predicate of its statement.
func openBundle(k Key, text []byte, i Image, kind string) (json.RawMessage, error) {
	if len(text) > MaxStatement {
		return nil, fmt.Errorf("the bundle has %d bytes, more than %d", len(text), MaxStatement)
	}
	payload, sig, err := parseBundle(text)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := k.verify(pae(envelopeType, payload), sig); err != nil {
		return nil, err
	}
	st, err := strictjson.Only(payload, "_type", "subject", "predicateType", "predicate")
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	var form, got string
	if err := errors.Join(st.Text("_type", &form), st.Text("predicateType", &got)); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if form != statementType || got != kind {
		return nil, fmt.Errorf("the statement is of type %.80q, not %s", got, kind)
	}
	repository, digest, err := parseSubject(st["subject"])
	if err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	return st["predicate"], i.same(repository, digest)
}

// parseBundle returns payload and signature. A bundle with a certificate is signed by somebody's login, not by a key.
func parseBundle(text []byte) (payload, sig []byte, err error) {
	top, err := strictjson.Only(text, "mediaType", "verificationMaterial", "dsseEnvelope")
	if err != nil {
		return nil, nil, err
	}
	var kind string
	if err := top.Text("mediaType", &kind); err != nil {
		return nil, nil, err
	}
	if kind != BundleType {
		return nil, nil, fmt.Errorf("media type %.80q: known is %s", kind, BundleType)
	}
	// Entries of transparency logs and time stamps are not read.
	m, err := strictjson.Only(top["verificationMaterial"], "publicKey", "tlogEntries", "timestampVerificationData")
	if err != nil {
		return nil, nil, fmt.Errorf("verificationMaterial: %w: only bundles signed with a key are read", err)
	}
	if m["publicKey"] == nil {
		return nil, nil, errors.New("it is not signed with a key (no publicKey)")
	}
	return parseEnvelope(top["dsseEnvelope"])
}

func parseEnvelope(text []byte) (payload, sig []byte, err error) {
	e, err := strictjson.Only(text, "payload", "payloadType", "signatures")
	if err != nil {
		return nil, nil, fmt.Errorf("dsseEnvelope: %w", err)
	}
	var kind string
	if err := e.Text("payloadType", &kind); err != nil {
		return nil, nil, err
	}
	if kind != envelopeType {
		return nil, nil, fmt.Errorf("payloadType %.60q: known is %s", kind, envelopeType)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(e["signatures"], &list); err != nil || len(list) != 1 {
		return nil, nil, errors.New("there is not exactly one signature")
	}
	s, err := strictjson.Only(list[0], "sig", "keyid")
	if err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	if payload, err = inBase64(e, "payload"); err != nil {
		return nil, nil, err
	}
	sig, err = inBase64(s, "sig")
	return payload, sig, err
}

// inBase64 reads a member that is bytes in base64.
func inBase64(m strictjson.Members, name string) ([]byte, error) {
	var text string
	if err := m.Text(name, &text); err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not in base64", name)
	}
	return b, nil
}

// parseSubject reads the one image that a statement is about. The repository is the subject's name, or stands in the
// annotation docker-reference (cosign sign -a docker-reference=REPOSITORY).
func parseSubject(text []byte) (repository, digest string, err error) {
	var list []json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil || len(list) != 1 {
		return "", "", errors.New("there is not exactly one")
	}
	s, err := strictjson.Only(list[0], "name", "digest", "annotations")
	if err != nil {
		return "", "", err
	}
	if s["name"] != nil {
		if err := s.Text("name", &repository); err != nil {
			return "", "", err
		}
	}
	if s["annotations"] != nil {
		notes, err := strictjson.Parse(s["annotations"])
		if err != nil {
			return "", "", fmt.Errorf("annotations: %w", err)
		}
		if repository == "" && notes[referenceNote] != nil {
			if err := notes.Text(referenceNote, &repository); err != nil {
				return "", "", err
			}
		}
	}
	d, err := strictjson.Only(s["digest"], "sha256")
	if err != nil {
		return "", "", fmt.Errorf("digest: %w", err)
	}
	var hex string
	if err := d.Text("sha256", &hex); err != nil {
		return "", "", err
	}
	return repository, "sha256:" + hex, nil
}
