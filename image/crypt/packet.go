// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/internal/strictjson"
)

// Algorithms of packets.
const (
	GCM = "A256GCM"
	CTR = "A256CTR"

	nonceSize     = 12
	maxKid        = 512
	packetVersion = "0.1.0"
	packetBroker  = "kbs"
)

// packet is version 1, which all of CoCo's releases read.
type packet struct {
	Kid     string `json:"kid"`
	Wrapped []byte `json:"wrapped_data"`
	IV      []byte `json:"iv"`
	Type    string `json:"wrap_type"`
}

// Wrap encrypts a secret for a recipient, and returns the packet.
func Wrap(secret []byte, to Recipient) ([]byte, error) {
	p := packet{Kid: to.Kid, Type: to.Algorithm}
	if p.Kid == "" || len(p.Kid) > maxKid {
		return nil, fmt.Errorf("a kid is missing, or has more than %d bytes", maxKid)
	}
	if p.Type == "" {
		p.Type = GCM
	}
	p.IV = random(ivSize(p.Type))
	var err error
	if p.Wrapped, err = p.crypt(to.Key, secret, true); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// Unwrap reads a packet of version 1 or 2, and decrypts the secret with the key that it names.
func Unwrap(ctx context.Context, text []byte, keys Keys) ([]byte, error) {
	p, err := parsePacket(text)
	if err != nil {
		return nil, fmt.Errorf("packet: %w", err)
	}
	key, err := keys(ctx, p.Kid)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", p.Kid, err)
	}
	secret, err := p.crypt(key, p.Wrapped, false)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", p.Kid, err)
	}
	return secret, nil
}

// ivSize is the length of an algorithm's IV; 0 for unknown ones.
func ivSize(algorithm string) int {
	return map[string]int{GCM: nonceSize, CTR: blockSize}[algorithm]
}

func parsePacket(text []byte) (p packet, err error) {
	if len(text) > maxAnnotation {
		return p, fmt.Errorf("it has more than %d bytes", maxAnnotation)
	}
	m, err := strictjson.Only(text, "kid", "wrapped_data", "iv", "wrap_type",
		"version", "provider", "provider_settings", "annotations")
	if err != nil {
		return p, err
	}
	if err := checkVersion2(m); err != nil {
		return p, err
	}
	if err := errors.Join(m.Text("kid", &p.Kid), m.Text("wrap_type", &p.Type)); err != nil {
		return p, err
	}
	if p.Kid == "" || len(p.Kid) > maxKid {
		return p, fmt.Errorf("kid is empty or has more than %d bytes", maxKid)
	}
	if p.Wrapped, err = inBase64(m, "wrapped_data"); err != nil {
		return p, err
	}
	if p.IV, err = inBase64(m, "iv"); err != nil {
		return p, err
	}
	switch n := ivSize(p.Type); {
	case n == 0:
		err = fmt.Errorf("wrap_type %.20q: known are %s and %s", p.Type, GCM, CTR)
	case len(p.IV) != n:
		err = fmt.Errorf("iv has %d bytes, %s takes %d", len(p.IV), p.Type, n)
	}
	return p, err
}

// checkVersion2 checks the members that version 2 has in addition. Each may be missing.
func checkVersion2(m strictjson.Members) error {
	for name, want := range map[string]string{"version": packetVersion, "provider": packetBroker} {
		if m[name] == nil {
			continue
		}
		var got string
		if err := m.Text(name, &got); err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s %.20q: known is %s", name, got, want)
		}
	}
	for _, name := range []string{"provider_settings", "annotations"} {
		if m[name] == nil {
			continue
		}
		if _, err := strictjson.Only(m[name]); err != nil {
			return fmt.Errorf("%s: provider %s takes an empty object only: %w", name, packetBroker, err)
		}
	}
	return nil
}

// crypt encrypts or decrypts.
func (p packet) crypt(key, in []byte, encrypt bool) ([]byte, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("it has %d bytes instead of %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	switch p.Type {
	case CTR:
		out := make([]byte, len(in))
		cipher.NewCTR(block, p.IV).XORKeyStream(out, in)
		return out, nil
	case GCM:
		c, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if encrypt {
			return c.Seal(nil, p.IV, in, nil), nil
		}
		out, err := c.Open(nil, p.IV, in, nil)
		if err != nil {
			return nil, errors.New("the packet is not encrypted with it, or was changed")
		}
		return out, nil
	}
	return nil, fmt.Errorf("algorithm %.20q: known are %s and %s", p.Type, GCM, CTR)
}
