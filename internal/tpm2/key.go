// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// Handles of hierarchies (part 2, 7.4).
const (
	hierarchyOwner       = 0x40000001
	hierarchyEndorsement = 0x4000000b
)

const (
	ccNVDefineSpace = 0x12a
	ccCreatePrimary = 0x131
	ccNVWrite       = 0x137
	ccStartup       = 0x144
	ccNVRead        = 0x14e
	ccQuote         = 0x158
	ccFlush         = 0x165
	ccNVReadPublic  = 0x169
)

// AKCertificate is the NV index that has the certificate of the attestation key. Clouds use the same one for theirs
// (P-256).
const AKCertificate = 0x01c10002

// maxNV bounds what is in an index, and in one command.
const maxNV = 1024

// akTemplate is the public area of which the attestation key is made: P-256, ECDSA with SHA-256, made in the TPM, bound
// to it, restricted to signing what the TPM has made (TPMT_PUBLIC, part 2, 12.2.4). A primary key depends on nothing
// but its template and the hierarchy's seed: the same TPM makes the same key again.
var akTemplate = []byte{
	0x00, 0x23, 0x00, 0x0b, // TPM_ALG_ECC, name by SHA-256
	0x00, 0x05, 0x04, 0x72, // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
	0, 0, // no policy
	0x00, 0x10, // no cipher
	0x00, 0x18, 0x00, 0x0b, // ECDSA, SHA-256
	0x00, 0x03, // P-256
	0x00, 0x10, // no derivation
	0, 0, 0, 0, // the point is the TPM's choice
}

// Key is a key that the TPM holds until it is flushed.
type Key struct {
	handle uint32
	// Public is the public area, with its length before it (TPM2B_PUBLIC).
	Public []byte
	// X and Y are the point on P-256.
	X, Y *big.Int
}

// Startup is the first command that a TPM takes after it was switched on. A guest's firmware has sent it.
func (t TPM) Startup() error {
	_, _, err := t.do(command{code: ccStartup, params: []byte{0, 0}}) // TPM_SU_CLEAR
	return err
}

// AttestationKey makes the attestation key of this TPM. The caller flushes it.
func (t TPM) AttestationKey() (*Key, error) {
	be := binary.BigEndian
	params := []byte{0, 4, 0, 0, 0, 0}                               // no password, no data
	params = be.AppendUint16(params, uint16(len(akTemplate)))        //nolint:gosec // some 30 bytes
	params = append(append(params, akTemplate...), 0, 0, 0, 0, 0, 0) // nothing of outside, no PCRs
	handles, out, err := t.do(command{
		code: ccCreatePrimary, handles: []uint32{hierarchyEndorsement}, auths: 1, params: params, answers: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("make the attestation key: %w", err)
	}
	r := &reader{rest: out}
	public := r.sized()
	size := be.AppendUint16(nil, uint16(len(public))) //nolint:gosec // a TPM2B
	k := &Key{handle: handles[0], Public: append(size, public...)}
	p := &reader{rest: public}
	p.take(len(akTemplate) - 4)
	x, y := p.sized(), p.sized()
	if err := errors.Join(r.err, p.err); err != nil || len(x) == 0 || len(y) == 0 {
		return nil, errors.Join(errors.New("make the attestation key: its public area is not of the template"), err,
			t.Flush(k))
	}
	k.X, k.Y = new(big.Int).SetBytes(x), new(big.Int).SetBytes(y)
	return k, nil
}

// Flush gives the TPM's place of a key back.
func (t TPM) Flush(k *Key) error {
	_, _, err := t.do(command{code: ccFlush, params: binary.BigEndian.AppendUint32(nil, k.handle)})
	if err != nil {
		return fmt.Errorf("flush the attestation key: %w", err)
	}
	return nil
}

// Quote has the TPM sign data and the PCRs of the SHA-256 bank. message is a TPMS_ATTEST, signature a TPMT_SIGNATURE.
func (t TPM) Quote(k *Key, data []byte, pcrs ...int) (message, signature []byte, err error) {
	if len(data) > 64 { // TPM2B_DATA: the longest digest with its algorithm
		return nil, nil, fmt.Errorf("quote with data of %d bytes: a TPM takes 64", len(data))
	}
	params := append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...) //nolint:gosec // bounded
	params = append(append(params, 0, 0x10), selection(pcrs...)...)                  // by the key's own scheme
	_, out, err := t.do(command{code: ccQuote, handles: []uint32{k.handle}, auths: 1, params: params})
	if err != nil {
		return nil, nil, fmt.Errorf("quote: %w", err)
	}
	r := &reader{rest: out}
	message = r.sized()
	if r.err != nil || len(message) == 0 || len(r.rest) == 0 {
		return nil, nil, errors.New("quote: the answer of the TPM is cut short")
	}
	return message, r.rest, nil
}

// nvPublic is the public area of an index: readable and writable without a password, as long as it does not exist.
func nvPublic(index uint32, size int) []byte {
	const attributes = 1<<1 | 1<<2 | 1<<17 | 1<<18 | 1<<25 // TPMA_NV: owner and password may write and read, no lockout
	be := binary.BigEndian
	b := be.AppendUint32(be.AppendUint16(be.AppendUint32(nil, index), algSHA256), attributes)
	b = be.AppendUint16(append(b, 0, 0), uint16(size))        //nolint:gosec // bounded by the callers
	return append(be.AppendUint16(nil, uint16(len(b))), b...) //nolint:gosec // 14 bytes
}

// Store defines an index of the non-volatile memory and writes data into it.
func (t TPM) Store(index uint32, data []byte) error {
	if len(data) == 0 || len(data) > maxNV {
		return fmt.Errorf("store %d bytes in the TPM: 1 to %d fit", len(data), maxNV)
	}
	_, _, err := t.do(command{
		code: ccNVDefineSpace, handles: []uint32{hierarchyOwner}, auths: 1,
		params: append([]byte{0, 0}, nvPublic(index, len(data))...),
	})
	if err != nil {
		return fmt.Errorf("define index %#x of the TPM: %w", index, err)
	}
	params := append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...) //nolint:gosec // bounded
	_, _, err = t.do(command{
		code: ccNVWrite, handles: []uint32{hierarchyOwner, index}, auths: 1, params: append(params, 0, 0),
	})
	if err != nil {
		return fmt.Errorf("write index %#x of the TPM: %w", index, err)
	}
	return nil
}

// Load reads an index of the non-volatile memory.
func (t TPM) Load(index uint32) ([]byte, error) {
	_, out, err := t.do(command{code: ccNVReadPublic, handles: []uint32{index}})
	if err != nil {
		return nil, fmt.Errorf("index %#x of the TPM: %w", index, err)
	}
	r := &reader{rest: out}
	public := &reader{rest: r.sized()}
	public.take(4 + 2 + 4) // index, algorithm, attributes
	public.sized()         // policy
	size := public.u16()
	if err := errors.Join(r.err, public.err); err != nil || size == 0 || size > maxNV {
		return nil, errors.Join(fmt.Errorf("index %#x of the TPM has %d bytes", index, size), err)
	}
	params := binary.BigEndian.AppendUint16(nil, size)
	_, out, err = t.do(command{
		code: ccNVRead, handles: []uint32{hierarchyOwner, index}, auths: 1, params: append(params, 0, 0),
	})
	if err != nil {
		return nil, fmt.Errorf("read index %#x of the TPM: %w", index, err)
	}
	r = &reader{rest: out}
	data := r.sized()
	return data, r.err
}
