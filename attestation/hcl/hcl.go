// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hcl verifies the reports that Azure's confidential VMs keep in their virtual TPM (NV index 0x01400001).
//
// In such a VM a paravisor of Azure (HCL) runs at VMPL 0 and gives the guest a TPM. It had the processor sign the
// SHA-256 of a JSON text, the runtime data: the TPM's attestation key, the VM's configuration, and 64 bytes that the
// guest may write (user data, NV index 0x01400002). The blob holds the hardware's report and that text.
//
// Verify verifies the report of SNP as package snp does, with REPORT_DATA bound to the runtime data, and compares the
// user data with what the caller asked for. User data of zeros says that the guest has written nothing: such a blob is
// as old as the VM and is refused unless the caller allows it. A report of TDX in a blob is a TDREPORT, which only the
// same machine can verify: a quote is needed for it.
package hcl

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
)

// Layout of the blob. All numbers are little-endian.
const (
	magic      = "HCLA"
	offVersion = 4
	offRequest = 12
	offReport  = 32
	offType    = 1224 // after data_size and a version
	offHash    = 1228
	offLength  = 1232
	offRuntime = 1236

	requestReport = 2
	typeSNP       = 2
	typeTDX       = 4
	hashSHA256    = 1

	// MaxSize bounds a blob; those of 2048 and 2600 bytes are known.
	MaxSize = 64 << 10
	maxUser = 64
)

// Envelope is a decoded blob. Nothing in it is verified.
type Envelope struct {
	// Report is the hardware's report of SNP.
	Report []byte
	// Runtime is the JSON to which the report is bound.
	Runtime []byte
	// UserData are the bytes of the guest, in Runtime: at most 64.
	UserData []byte
	// Config is the VM's configuration, in Runtime.
	Config map[string]any
}

// Is tells whether bytes begin as a blob does.
func Is(b []byte) bool { return bytes.HasPrefix(b, []byte(magic)) }

func malformed(field, expected, got string, err error) error {
	return attestation.Fail(attestation.CodeMalformed, "hcl."+field, expected, got, err)
}

// Parse decodes a blob. Bytes after the runtime data are not bound to anything, and not read.
func Parse(b []byte) (*Envelope, error) {
	if len(b) < offRuntime || len(b) > MaxSize || !Is(b) {
		return nil, malformed("blob", fmt.Sprintf("%s and %d to %d bytes", magic, offRuntime, MaxSize),
			fmt.Sprint(len(b)), nil)
	}
	le := binary.LittleEndian
	if le.Uint32(b[offType:]) == typeTDX {
		return nil, attestation.Fail(attestation.CodeUnsupported, "hcl.report_type", "2 (SNP)",
			"4 (TDX): a TDREPORT, which only its own machine can verify; give the quote", nil)
	}
	for _, f := range []struct {
		name    string
		at      int
		allowed []uint32
	}{
		{"version", offVersion, []uint32{1, 2}},
		{"request_type", offRequest, []uint32{requestReport}},
		{"report_type", offType, []uint32{typeSNP}},
		{"hash_type", offHash, []uint32{hashSHA256}},
	} {
		if got := le.Uint32(b[f.at:]); !slices.Contains(f.allowed, got) {
			return nil, attestation.Fail(attestation.CodeUnsupported, "hcl."+f.name, fmt.Sprint(f.allowed),
				fmt.Sprint(got), nil)
		}
	}
	n := int64(le.Uint32(b[offLength:]))
	if n == 0 || n > int64(len(b)-offRuntime) {
		return nil, malformed("variable_data_size", fmt.Sprintf("1 to %d", len(b)-offRuntime), fmt.Sprint(n), nil)
	}
	e := &Envelope{
		Report:  bytes.Clone(b[offReport : offReport+snp.ReportSize]),
		Runtime: bytes.Clone(b[offRuntime : offRuntime+n]),
	}
	return e, e.parse()
}

// parse reads the JSON. Members that are not known are left alone.
func (e *Envelope) parse() error {
	var r struct {
		Config   map[string]any `json:"vm-configuration"`
		UserData string         `json:"user-data"`
	}
	if err := json.Unmarshal(e.Runtime, &r); err != nil {
		return malformed("runtime_data", "JSON", "something else", err)
	}
	var err error
	if e.UserData, err = hex.DecodeString(r.UserData); err != nil || len(e.UserData) > maxUser {
		return malformed("user-data", "at most 64 bytes in hexadecimal", fmt.Sprintf("%d characters", len(r.UserData)), err)
	}
	e.Config = r.Config
	return nil
}

// Evidence returns the report as evidence of SNP, to ask for its certificates.
func (e *Envelope) Evidence() attestation.Evidence {
	return attestation.Evidence{Type: attestation.SNP, Report: e.Report}
}

// Verify verifies a blob. want.ReportData is what the guest was asked to write as user data; allowNone accepts a blob
// in which it has written nothing, unless want.ReportData is given. In the claims, ReportData is the user data.
func Verify(
	v snp.Verifier, e *Envelope, col attestation.Collateral, want snp.Expectations, allowNone bool,
) (*attestation.Claims, error) {
	user := want.ReportData
	sum := sha256.Sum256(e.Runtime)
	want.ReportData = sum[:]
	c, err := v.Verify(e.Evidence(), col, want)
	if err != nil {
		return nil, err
	}
	got := make([]byte, maxUser)
	copy(got, e.UserData)
	var t attestation.Trail
	if err := written(&t, got, user, allowNone, want.Leaves(attestation.ItemReportData)); err != nil {
		return nil, err
	}
	more := t.Claim(attestation.Claims{})
	c.Checks, c.Undecided = append(c.Checks, more.Checks...), append(c.Undecided, more.Undecided...)
	c.ReportData = got
	c.Details["report_data"] = hex.EncodeToString(got)
	c.Details["hcl_vm_configuration"] = e.Config
	return c, nil
}

// written compares the user data.
func written(t *attestation.Trail, got, want []byte, allowNone, undecided bool) error {
	check := attestation.Check{
		Code: attestation.CodeUserData, Field: "user-data", Expected: "written by the guest", Got: hex.EncodeToString(got),
	}
	switch {
	case want != nil && (len(want) == 0 || len(want) > maxUser):
		return attestation.Fail(attestation.CodeExpectation, "user-data", "1 to 64 bytes", fmt.Sprint(len(want)), nil)
	case want != nil:
		padded := make([]byte, maxUser)
		copy(padded, want)
		check.Expected = hex.EncodeToString(padded)
		return t.Check(bytes.Equal(got, padded), check)
	case !undecided:
		return attestation.Fail(attestation.CodeExpectation, "user-data",
			"a value to compare with, or the item report-data named as undecided", "neither", nil)
	case bytes.Equal(got, make([]byte, maxUser)) && !allowNone:
		return t.Check(false, check)
	}
	t.Undecided(attestation.ItemReportData)
	return nil
}
