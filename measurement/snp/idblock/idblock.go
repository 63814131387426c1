// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package idblock makes the ID block of an SEV-SNP launch, a statement of the launch digest and policy which
// the AMD firmware enforces before the guest runs, and its anonymous authentication. Package idauth signs ID
// blocks with keys and checks authentications.
package idblock

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
)

// Size is the length of an encoded ID block (AMD SEV-SNP firmware ABI, 56860, table 75).
const Size = 96

const version = 1

// Block is what the AMD firmware compares with a launch before it lets the guest run: it refuses
// a guest with another launch digest or policy.
type Block struct {
	LaunchDigest [sha512.Size384]byte
	FamilyID     [16]byte // free for the owner; appears in the report
	ImageID      [16]byte // likewise
	GuestSVN     uint32   // security version of the guest; appears in the report
	Policy       Policy   // must equal the policy of the launch
}

// New returns an ID block for a launch digest and a policy.
func New(ld measurement.Digest, policy Policy) (Block, error) {
	if len(ld) != sha512.Size384 {
		return Block{}, fmt.Errorf("id block: launch digest has %d bytes, not 48 (only SNP has ID blocks)", len(ld))
	}
	if err := policy.Check(); err != nil {
		return Block{}, fmt.Errorf("id block: %w", err)
	}
	return Block{LaunchDigest: [sha512.Size384]byte(ld), Policy: policy}, nil
}

// Marshal encodes the ID block.
func (b Block) Marshal() []byte {
	out := make([]byte, Size)
	copy(out, b.LaunchDigest[:])
	copy(out[0x30:], b.FamilyID[:])
	copy(out[0x40:], b.ImageID[:])
	binary.LittleEndian.PutUint32(out[0x50:], version)
	binary.LittleEndian.PutUint32(out[0x54:], b.GuestSVN)
	binary.LittleEndian.PutUint64(out[0x58:], uint64(b.Policy))
	return out
}

// Parse decodes an ID block.
func Parse(raw []byte) (Block, error) {
	if len(raw) != Size {
		return Block{}, fmt.Errorf("id block has %d bytes, not %d", len(raw), Size)
	}
	if v := binary.LittleEndian.Uint32(raw[0x50:]); v != version {
		return Block{}, fmt.Errorf("id block has version %d, not %d", v, version)
	}
	return Block{
		LaunchDigest: [sha512.Size384]byte(raw[:0x30]),
		FamilyID:     [16]byte(raw[0x30:0x40]),
		ImageID:      [16]byte(raw[0x40:0x50]),
		GuestSVN:     binary.LittleEndian.Uint32(raw[0x54:]),
		Policy:       Policy(binary.LittleEndian.Uint64(raw[0x58:])),
	}, nil
}

// Policy is the guest policy of an SNP launch (56860, table 10).
type Policy uint64

// Bits of the policy. Bits 0-7 and 8-15 are the least minor and major ABI version.
const (
	PolicySMT            Policy = 1 << 16 // may run with simultaneous multithreading
	PolicyReserved1      Policy = 1 << 17 // must be one
	PolicyMigrationAgent Policy = 1 << 18
	PolicyDebug          Policy = 1 << 19 // the host may read and change the guest's memory
	PolicySingleSocket   Policy = 1 << 20
	PolicyCXL            Policy = 1 << 21
	PolicyAES256XTS      Policy = 1 << 22
	PolicyNoRAPL         Policy = 1 << 23
	PolicyCiphertextHide Policy = 1 << 24
	PolicyNoPageSwap     Policy = 1 << 25

	// DefaultPolicy is QEMU's: multithreading allowed, nothing else.
	DefaultPolicy = PolicySMT | PolicyReserved1
)

// Check returns why the AMD firmware would refuse the policy, or nil.
func (p Policy) Check() error {
	if p&PolicyReserved1 == 0 {
		return fmt.Errorf("policy %#x: bit 17 must be one", uint64(p))
	}
	if p>>26 != 0 {
		return fmt.Errorf("policy %#x: bits above 25 must be zero", uint64(p))
	}
	return nil
}

// ErrDebug marks a policy that lets the host into the guest.
var ErrDebug = errors.New("policy allows debugging: the host could read and change the guest's memory")

// CheckProduction returns why the policy must not be used where confidentiality is promised, or nil.
func (p Policy) CheckProduction() error {
	if p&PolicyDebug != 0 {
		return fmt.Errorf("policy %#x: %w", uint64(p), ErrDebug)
	}
	return p.Check()
}
