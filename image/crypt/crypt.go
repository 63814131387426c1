// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crypt encrypts and decrypts layers of container images in the format of ocicrypt, with keys that CoCo's key
// provider "attestation-agent" wraps.
//
// A layer's bytes are encrypted by AES-256-CTR with a key of their own, and authenticated by HMAC-SHA256 over the
// ciphertext. The descriptor of the layer has two annotations: the public options with the HMAC, and a packet with the
// private options (key, nonce, digest of the plain layer), which are encrypted with a key of the owner's. The packet
// names that key by its kid, for CoCo the URI of a resource of the key broker.
//
// The plain bytes come out of Decrypt before the HMAC is known: nobody may use them before the reader has returned
// io.EOF.
//
// The package does no I/O but through the readers that it is given. Its caller finds keys, and decides which kids may
// be used.
//
// Sources: containers/ocicrypt, its spec and docs/keyprovider.md; confidential-containers/guest-components,
// coco_keyprovider and annotation_packet.
package crypt

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	// Provider is the name of CoCo's key provider.
	Provider = "attestation-agent"
	// Suffix ends the media types of encrypted layers.
	Suffix = "+encrypted"

	annotations       = "org.opencontainers.image.enc."
	keysAnnotation    = annotations + "keys."
	packetAnnotation  = keysAnnotation + "provider." + Provider
	optionsAnnotation = annotations + "pubopts"

	// maxAnnotation bounds an annotation, maxPackets the packets in one.
	maxAnnotation = 64 << 10
	maxPackets    = 16
)

var b64 = base64.StdEncoding.Strict()

// Keys returns the key with a kid: 32 bytes. An error says why this kid may not be used, or is not there.
type Keys func(ctx context.Context, kid string) ([]byte, error)

// Recipient is a key of the owner's that layers are encrypted for.
type Recipient struct {
	Kid string
	Key []byte // 32 bytes
	// Algorithm is A256GCM or A256CTR; empty means A256GCM. A256CTR does not authenticate the packet.
	Algorithm string
}

// private are ocicrypt's private options.
type private struct {
	Key     []byte            `json:"symkey"`
	Digest  string            `json:"digest"`
	Options map[string][]byte `json:"cipheroptions"`
}

// public are ocicrypt's public options.
type public struct {
	Cipher  string            `json:"cipher"`
	HMAC    []byte            `json:"hmac"`
	Options map[string][]byte `json:"cipheroptions"`
}

const cipherName = "AES_256_CTR_HMAC_SHA256"

// Encrypted tells whether a media type is that of an encrypted layer.
func Encrypted(mediaType string) bool { return strings.HasSuffix(mediaType, Suffix) }

// Plain returns annotations without those of the encryption.
func Plain(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if !strings.HasPrefix(k, annotations) {
			out[k] = v
		}
	}
	return out
}

// Encrypter is a reader of an encrypted layer.
type Encrypter struct {
	*stream
	private private
	to      Recipient
}

// Encrypt encrypts a layer. digest is that of its bytes, "sha256:…"; the reader fails at the end if it is another.
func Encrypt(r io.Reader, digest string, to Recipient) (*Encrypter, error) {
	p := private{
		Key: random(keySize), Digest: digest,
		Options: map[string][]byte{"nonce": random(blockSize)},
	}
	s, err := newStream(r, p)
	if err != nil {
		return nil, err
	}
	return &Encrypter{s, p, to}, nil
}

// Annotations returns the annotations of the layer, after its last byte was read.
func (e *Encrypter) Annotations() (map[string]string, error) {
	if !errors.Is(e.err, io.EOF) {
		return nil, errors.New("the layer is not encrypted to its end")
	}
	secret, err := json.Marshal(e.private)
	if err != nil {
		return nil, err
	}
	packet, err := Wrap(secret, e.to)
	if err != nil {
		return nil, err
	}
	open, err := json.Marshal(public{cipherName, e.mac.Sum(nil), map[string][]byte{}})
	if err != nil {
		return nil, err
	}
	return map[string]string{
		packetAnnotation: b64.EncodeToString(packet), optionsAnnotation: b64.EncodeToString(open),
	}, nil
}

// Decrypt decrypts a layer with the annotations of its descriptor. The reader returns an error instead of io.EOF if the
// HMAC is wrong. The caller compares the layer's content with its DiffID. The digest among the private options is not
// used: tools that compress while they encrypt write the one from before.
func Decrypt(ctx context.Context, r io.Reader, layer map[string]string, keys Keys) (io.Reader, error) {
	secret, err := unwrapAny(ctx, layer, keys)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	p, err := parsePrivate(secret)
	if err != nil {
		return nil, fmt.Errorf("the layer's private options: %w", err)
	}
	open, err := parsePublic(layer[optionsAnnotation])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", optionsAnnotation, err)
	}
	s, err := newStream(r, p)
	if err != nil {
		return nil, err
	}
	s.want = open.HMAC
	return s, nil
}

// unwrapAny opens the first packet for which there is a key.
func unwrapAny(ctx context.Context, layer map[string]string, keys Keys) ([]byte, error) {
	text, ok := layer[packetAnnotation]
	if !ok {
		return nil, otherRecipients(layer)
	}
	packets := strings.Split(text, ",")
	if len(text) > maxAnnotation || len(packets) > maxPackets {
		return nil, fmt.Errorf("annotation %s has more than %d bytes or %d packets", packetAnnotation, maxAnnotation,
			maxPackets)
	}
	var all []error
	for _, p := range packets {
		b, err := b64.DecodeString(p)
		if err != nil {
			return nil, fmt.Errorf("annotation %s is not in base64", packetAnnotation)
		}
		secret, err := Unwrap(ctx, b, keys)
		if err == nil {
			return secret, nil
		}
		all = append(all, err)
	}
	return nil, fmt.Errorf("the layer's key: %w", errors.Join(all...))
}

// otherRecipients says for whom a layer is encrypted that has no packet of ours.
func otherRecipients(layer map[string]string) error {
	var names []string
	for k := range layer {
		if name, ok := strings.CutPrefix(k, keysAnnotation); ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return errors.New("the layer has no annotation with its key: it is not encrypted, or was stripped")
	}
	return fmt.Errorf("the layer is encrypted for recipients by %s only: known is provider.%s", strings.Join(names, ", "),
		Provider)
}

// parsePrivate reads private options. They were encrypted, and with A256CTR not authenticated.
func parsePrivate(text []byte) (p private, err error) {
	m, err := strictjson.Only(text, "symkey", "digest", "cipheroptions")
	if err != nil {
		return p, err
	}
	if p.Key, err = inBase64(m, "symkey"); err != nil {
		return p, err
	}
	if err := m.Text("digest", &p.Digest); err != nil {
		return p, err
	}
	options, err := strictjson.Only(m["cipheroptions"], "nonce")
	if err != nil {
		return p, fmt.Errorf("cipheroptions: %w", err)
	}
	nonce, err := inBase64(options, "nonce")
	p.Options = map[string][]byte{"nonce": nonce}
	return p, err
}

func parsePublic(text string) (p public, err error) {
	if len(text) > maxAnnotation {
		return p, fmt.Errorf("it has more than %d bytes", maxAnnotation)
	}
	b, err := b64.DecodeString(text)
	if err != nil || len(b) == 0 {
		return p, errors.New("it is missing or not in base64")
	}
	m, err := strictjson.Only(b, "cipher", "hmac", "cipheroptions")
	if err != nil {
		return p, err
	}
	if err := m.Text("cipher", &p.Cipher); err != nil {
		return p, err
	}
	if p.Cipher != cipherName {
		return p, fmt.Errorf("cipher %.60q: known is %s", p.Cipher, cipherName)
	}
	// ocicrypt reads a nonce from here first: the host could choose it.
	if o := m["cipheroptions"]; o != nil && string(o) != "null" {
		if _, err := strictjson.Only(o); err != nil {
			return p, fmt.Errorf("cipheroptions: %w", err)
		}
	}
	if p.HMAC, err = inBase64(m, "hmac"); err == nil && len(p.HMAC) != macSize {
		err = fmt.Errorf("hmac is not %d bytes", macSize)
	}
	return p, err
}

// inBase64 reads a member that is bytes in base64.
func inBase64(m strictjson.Members, name string) ([]byte, error) {
	var text string
	if err := m.Text(name, &text); err != nil {
		return nil, err
	}
	b, err := b64.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not in base64", name)
	}
	return b, nil
}
