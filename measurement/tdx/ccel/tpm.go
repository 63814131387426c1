// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ccel

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
)

// PCRs of a TPM.
const (
	lastPCR         = 23
	firstDynamicPCR = 17 // these start with ones and are reset by a dynamic launch, which a log of this form lacks
	lastDynamicPCR  = 22
)

// tpmFormats are the banks that can be read.
var tpmFormats = map[crypto.Hash]format{
	crypto.SHA256: {tpm: true, alg: 0x0b, size: sha256.Size, maxMR: lastPCR},
	crypto.SHA384: {tpm: true, alg: 0x0c, size: sha512.Size384, maxMR: lastPCR},
}

// startupLocality begins the data of the event that says from where the TPM was started.
var startupLocality = []byte("StartupLocality\x00")

// ParseTPM reads the event log of a TPM, with the digests of one bank (SHA-256 or SHA-384).
func ParseTPM(b []byte, bank crypto.Hash) (*Log, error) {
	f, ok := tpmFormats[bank]
	if !ok {
		return nil, fmt.Errorf("event log: bank %v is not SHA-256 or SHA-384", bank)
	}
	return parse(b, f)
}

// ReplayTPM returns the values that a TPM's log leads to, for each PCR that has an event.
func (l *Log) ReplayTPM() (map[int]measurement.Digest, error) {
	out := map[int]measurement.Digest{}
	locality := byte(0)
	for i, e := range l.Events {
		if e.Type == EvNoAction {
			if rest, ok := bytes.CutPrefix(e.Data, startupLocality); ok && e.MR == 0 && len(rest) == 1 {
				locality = rest[0]
			}
			continue
		}
		n := int(e.MR)
		if n >= firstDynamicPCR && n <= lastDynamicPCR {
			return nil, fmt.Errorf("event log: event %d extends PCR %d, which a dynamic launch resets", i, n)
		}
		value, ok := out[n]
		if !ok {
			value = make(measurement.Digest, len(e.Digest))
			if n == 0 {
				value[len(value)-1] = locality
			}
		}
		switch len(e.Digest) {
		case sha256.Size:
			sum := sha256.Sum256(append(bytes.Clone(value), e.Digest...))
			out[n] = sum[:]
		case sha512.Size384:
			sum := sha512.Sum384(append(bytes.Clone(value), e.Digest...))
			out[n] = sum[:]
		default:
			return nil, errors.New("event log: it is not one of ParseTPM")
		}
	}
	return out, nil
}
