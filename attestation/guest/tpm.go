// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest makes evidence of the machine that it runs on, in the JSON that CoCo's attesters send. A guest of one
// platform makes evidence of that platform or none: there is no other one to fall back to.
package guest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/coco-shim/coco/internal/tpm2"
)

// TPM makes evidence of type "tpm": a quote of all PCRs of the SHA-256 bank by a key that is made in the TPM, with the
// key's certificate by the CA of the node that runs the TPM. It says what was booted, to whoever trusts that node.
type TPM struct {
	// Open opens the TPM; the caller of the result closes it.
	Open func() (tpm2.TPM, func() error, error)

	mu sync.Mutex // a TPM has room for few keys
}

// TEE is "tpm".
func (*TPM) TEE() string { return "tpm" }

// evidence is Trustee's form, with the certificate beside it. Slices of bytes are base64.
type evidence struct {
	Key          []byte `json:"ak_public"` // TPM2B_PUBLIC: it says that the key is restricted
	Certificates []byte `json:"ak_certificates"`
	Quote        quote  `json:"tpm_quote"`
}

type quote struct {
	Signature []byte   `json:"signature"`
	Message   []byte   `json:"message"`
	PCRs      []string `json:"pcrs"`
}

// quoteData is how much of a digest is in a quote, as in CoCo's.
const quoteData = 32

// Evidence quotes the PCRs with the first 32 bytes of a digest.
func (t *TPM) Evidence(_ context.Context, digest []byte) (_ json.RawMessage, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tpm, closeTPM, err := t.Open()
	if err != nil {
		return nil, fmt.Errorf("evidence of the TPM: %w", err)
	}
	defer func() { err = errors.Join(err, closeTPM()) }()
	e, err := gather(tpm, digest[:min(len(digest), quoteData)])
	if err != nil {
		return nil, fmt.Errorf("evidence of the TPM: %w", err)
	}
	return json.Marshal(e)
}

func gather(tpm tpm2.TPM, digest []byte) (e evidence, err error) {
	if e.Certificates, err = tpm.Load(tpm2.AKCertificate); err != nil {
		return e, fmt.Errorf("certificate of the attestation key, which the node's CA gives (vtpm.ca): %w", err)
	}
	key, err := tpm.AttestationKey()
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, tpm.Flush(key)) }()
	e.Key = key.Public
	all := make([]int, tpm2.PCRs)
	for n := range all {
		all[n] = n
	}
	if e.Quote.Message, e.Quote.Signature, err = tpm.Quote(key, digest, all...); err != nil {
		return e, err
	}
	for _, n := range all {
		value, err := tpm.PCR(n)
		if err != nil {
			return e, err
		}
		e.Quote.PCRs = append(e.Quote.PCRs, hex.EncodeToString(value))
	}
	return e, nil
}
