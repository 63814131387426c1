// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package skr releases a key to a guest of SEV-SNP: secure key release, from the report to the key.
//
// Release makes an RSA key for this one request and has its digest signed by the processor. With the chip's
// certificates the report becomes a token of the attestation service, which is checked here first, and the token opens
// the vault.
// Should the host's certificate be for another patch level, a new report is made: the firmware was updated in between.
package skr

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/maa"
	"github.com/coco-shim/coco/azure/thim"
)

// Guest is a guest that wants keys.
type Guest struct {
	// Evidence makes evidence for runtime data. Nil: a report of SNP, with Certificates.
	Evidence func(ctx context.Context, runtime []byte) (maa.Evidence, error)
	// Report returns a report with these bytes in REPORT_DATA.
	Report func(ctx context.Context, data [64]byte) ([]byte, error)
	// Certificates has the chip's certificates.
	Certificates *thim.Store
	MAA          *maa.Client
	Vault        *akv.Client
	// Key makes the wrapping key of one request. Nil: NewKey.
	Key func(ctx context.Context) (*rsa.PrivateKey, error)
	// Endorsements are statements on the launch digest (COSE_Sign1) for the attestation service, or none.
	Endorsements [][]byte
}

const (
	wrappingBits = 2048
	tries        = 3 // reports, where certificates are for another patch level

	// Fields of a report: SEV-SNP firmware ABI, AMD 56860, table "ATTESTATION_REPORT structure".
	reportSize  = 1184
	offReported = 0x180 // REPORTED_TCB
	offChip     = 0x1A0
)

// Release returns a key of the vault. The caller wipes it.
func (g *Guest) Release(ctx context.Context, id akv.KeyID, wrap kwp.Scheme) (*akv.Key, error) {
	key := g.Key
	if key == nil {
		key = NewKey
	}
	k, err := key(ctx)
	if err != nil {
		return nil, fmt.Errorf("wrapping key: %w", err)
	}
	defer Wipe(k)
	runtime, err := runtimeData(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	token, err := g.Attest(ctx, runtime)
	if err != nil {
		return nil, err
	}
	return g.Vault.Release(ctx, akv.Ask{Key: id, Token: token, Wrap: wrap}, k)
}

// Attest returns a token for runtime data, which is checked.
func (g *Guest) Attest(ctx context.Context, runtime []byte) (string, error) {
	evidence := g.Evidence
	if evidence == nil {
		evidence = g.SNP
	}
	e, err := evidence(ctx, runtime)
	if err != nil {
		return "", err
	}
	token, at, err := g.MAA.Attest(ctx, e)
	if err != nil {
		return "", err
	}
	_, err = g.MAA.Check(ctx, token, maa.Expect{Kind: e.Kind, At: at, RuntimeData: runtime})
	return token, err
}

// SNP makes a report, and gets the certificates that belong to it.
func (g *Guest) SNP(ctx context.Context, runtime []byte) (maa.Evidence, error) {
	var err error
	for range tries {
		var report, chain []byte
		if report, err = g.Report(ctx, maa.ReportData(runtime)); err != nil {
			return maa.Evidence{}, fmt.Errorf("report: %w", err)
		}
		if len(report) != reportSize {
			return maa.Evidence{}, fmt.Errorf("report: %d bytes, and a report of SNP has %d", len(report), reportSize)
		}
		chip := thim.Chip{ID: [64]byte(report[offChip:]), TCB: TCB(report)}
		if chain, err = g.Certificates.Chain(ctx, chip); err == nil {
			return maa.Evidence{
				Kind: maa.SevSnpVM, Report: report, Chain: chain, Endorsements: g.Endorsements, RuntimeData: runtime,
			}, nil
		}
		if !errors.Is(err, thim.ErrOtherTCB) {
			break
		}
	}
	return maa.Evidence{}, err
}

// TCB is REPORTED_TCB of a report.
func TCB(report []byte) uint64 { return binary.LittleEndian.Uint64(report[offReported:]) }

// runtimeData names the wrapping key, as the sidecars of Microsoft do.
func runtimeData(k *rsa.PublicKey) ([]byte, error) {
	type jwk struct {
		KTY string   `json:"kty"`
		KID string   `json:"kid"`
		Ops []string `json:"key_ops"`
		N   string   `json:"n"`
		E   string   `json:"e"`
	}
	enc := base64.RawURLEncoding.EncodeToString
	var id [16]byte
	rand.Read(id[:])
	return json.Marshal(map[string][]jwk{"keys": {{
		"RSA", enc(id[:]), []string{"encrypt"}, enc(k.N.Bytes()), enc(big.NewInt(int64(k.E)).Bytes()),
	}}})
}

// NewKey makes a wrapping key.
func NewKey(context.Context) (*rsa.PrivateKey, error) {
	return rsa.GenerateKey(rand.Reader, wrappingBits)
}

// Wipe clears a private key. Copies that package rsa has made for itself are out of reach.
func Wipe(k *rsa.PrivateKey) {
	for _, n := range append([]*big.Int{k.D, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv}, k.Primes...) {
		if n != nil {
			clear(n.Bits())
		}
	}
}
