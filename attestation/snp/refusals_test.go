// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

func put(at int, b ...byte) func([]byte) {
	return func(report []byte) { copy(report[at:], b) }
}

func or64(at int, bits uint64) func([]byte) {
	return func(b []byte) {
		binary.LittleEndian.PutUint64(b[at:], binary.LittleEndian.Uint64(b[at:])|bits)
	}
}

func extension(id asn1.ObjectIdentifier, value []byte) func([]pkix.Extension) []pkix.Extension {
	return func(exts []pkix.Extension) []pkix.Extension {
		out := slices.DeleteFunc(exts, func(e pkix.Extension) bool { return e.Id.Equal(id) })
		if value == nil {
			return out
		}
		return append(out, pkix.Extension{Id: id, Value: value})
	}
}

// refusal is a report with one thing wrong, or expectations that it does not meet.
type refusal struct {
	name string
	spec snptest.Spec
	want snp.Expectations
	code attestation.Code
}

var (
	one   = []byte{2, 1, 1}    // INTEGER 1
	level = snp.TCB{SNP: 24}   // of MinTCB
	chip  = sequence(0x11, 64) // not the chip
	key   = sequence(0x21, 48) // not the key
	newer = snp.Version{Major: 1, Minor: 55, Build: 30}
	allow = snp.Expectations{} // nothing of the workload is compared
	keyOf = func(b []byte) { copy(b[0xE0:], sequence(0x33, 48)); copy(b[0x110:], sequence(0x66, 48)); b[0x48] |= 1 }
)

type spec = snptest.Spec

var oid = snptest.OID

// Codes, in short.
const (
	codeCertificate       = attestation.CodeCertificate
	codeChain             = attestation.CodeChain
	codeChip              = attestation.CodeChip
	codeChipMasked        = attestation.CodeChipMasked
	codeCloudProvider     = attestation.CodeCloudProvider
	codeCollateralEarly   = attestation.CodeCollateralEarly
	codeCollateralExpired = attestation.CodeCollateralExpired
	codeCollateralInvalid = attestation.CodeCollateralInvalid
	codeDebug             = attestation.CodeDebug
	codeExpectation       = attestation.CodeExpectation
	codeGuestPolicy       = attestation.CodeGuestPolicy
	codeIDBlock           = attestation.CodeIDBlock
	codeInitData          = attestation.CodeInitData
	codeKeyKind           = attestation.CodeKeyKind
	codeMeasurement       = attestation.CodeMeasurement
	codeMigration         = attestation.CodeMigration
	codeOutdated          = attestation.CodeOutdated
	codePlatform          = attestation.CodePlatform
	codePrivilege         = attestation.CodePrivilege
	codeProduct           = attestation.CodeProduct
	codeReportData        = attestation.CodeReportData
	codeReserved          = attestation.CodeReserved
	codeRevoked           = attestation.CodeRevoked
	codeTCBOrder          = attestation.CodeTCBOrder
	codeUnsigned          = attestation.CodeUnsigned
	codeUnsupported       = attestation.CodeUnsupported
)

var refusals = []refusal{
	{"version 1", spec{Version: 1}, allow, codeUnsupported},
	{"version 6", spec{Version: 6}, allow, codeUnsupported},
	{"reserved byte 0x4C", spec{Edit: put(0x4C, 1)}, allow, codeReserved},
	{"reserved byte 0x188 of version 2", spec{Version: 2, Edit: put(0x188, 1)}, allow, codeReserved},
	{"reserved byte 0x18B", spec{Edit: put(0x18B, 1)}, allow, codeReserved},
	{"reserved byte 0x1EB", spec{Edit: put(0x1EB, 1)}, allow, codeReserved},
	{"reserved byte 0x1EF", spec{Edit: put(0x1EF, 1)}, allow, codeReserved},
	{"mitigations in version 3", spec{Edit: put(0x1F8, 1)}, allow, codeReserved},
	{"reserved byte 0x29F", spec{Version: 5, Edit: put(0x29F, 1)}, allow, codeReserved},
	{"policy bit 26", spec{Edit: or64(8, 1<<26)}, allow, codeReserved},
	{"policy without bit 17", spec{Edit: put(10, 1)}, allow, codeReserved},
	{"platform bit 6", spec{Edit: or64(0x40, 1<<6)}, allow, codeReserved},
	{"platform bit 63", spec{Edit: or64(0x40, 1<<63)}, allow, codeReserved},
	{"key_info bit 5", spec{Edit: put(0x48, 1<<5)}, allow, codeReserved},
	{"reserved byte of reported_tcb", spec{Edit: put(0x182, 1)}, allow, codeReserved},
	{"reserved byte of current_tcb", spec{Edit: put(0x3A, 1)}, allow, codeReserved},
	{"reserved byte of Turin's TCB", spec{Product: snp.Turin, Edit: put(0x1E4, 1)}, allow, codeReserved},
	{"not signed", spec{Edit: put(0x48, 7<<2)}, allow, codeUnsigned},
	{"unknown key", spec{Edit: put(0x48, 2<<2)}, allow, codeUnsigned},
	{"unknown algorithm", spec{Edit: put(0x34, 2)}, allow, codeUnsupported},
	{"unknown processor", spec{Edit: put(0x188, 0x1B)}, allow, codeUnsupported},
	{"model between Milan and Siena", spec{Edit: put(0x189, 0x20)}, allow, codeUnsupported},
	{"Genoa's processor with Milan's key", spec{Edit: put(0x189, 0x11)}, allow, codeChain},
	{"masked chip by VCEK", spec{Edit: put(0x1A0, make([]byte, 64)...)}, allow, codeChipMasked},
	{"masked key by VCEK", spec{Edit: put(0x48, 2)}, allow, codeChipMasked},
	{"other chip", spec{Edit: put(0x1DF, 1)}, allow, codeCertificate},
	{"other chip of Turin", spec{Product: snp.Turin, Edit: put(0x1A7, 99)}, allow, codeCertificate},
	{"HWID of 8 bytes on Milan", spec{Extensions: extension(oid(4), snptest.Chip[:8])}, allow, codeCertificate},
	{"HWID of 64 bytes on Turin", spec{
		Product: snp.Turin, Extensions: extension(oid(4), snptest.Chip[:]),
	}, allow, codeCertificate},
	{"HWID of 7 bytes", spec{Extensions: extension(oid(4), snptest.Chip[:7])}, allow, codeCertificate},
	{"no HWID", spec{Extensions: extension(oid(4), nil)}, allow, codeCertificate},
	{"HWID and CSP_ID", spec{
		Extensions: extension(oid(5), []byte{0x16, 1, 'a'}),
	}, allow, codeCertificate},
	{"extension twice", spec{Extensions: func(e []pkix.Extension) []pkix.Extension {
		return append(e, pkix.Extension{Id: append(oid(3), 1, 1), Value: one}, pkix.Extension{
			Id: append(oid(3), 1, 1), Value: one,
		})
	}}, allow, codeCollateralInvalid},
	{"product of another line", spec{Name: "Genoa-B0"}, allow, codeCertificate},
	{"no product", spec{Extensions: extension(oid(2), nil)}, allow, codeCertificate},
	{"other bootloader level", spec{Extensions: extension(oid(3, 1), one)}, allow, codeCertificate},
	{"other TEE level", spec{Extensions: extension(oid(3, 2), []byte{2, 1, 9})}, allow, codeCertificate},
	{"other SNP level", spec{Extensions: extension(oid(3, 3), one)}, allow, codeCertificate},
	{"other microcode level", spec{Extensions: extension(oid(3, 8), one)}, allow, codeCertificate},
	{"FMC level on Milan", spec{Extensions: extension(oid(3, 9), one)}, allow, codeCertificate},
	{"no FMC level on Turin", spec{
		Product: snp.Turin, Extensions: extension(oid(3, 9), nil),
	}, allow, codeCertificate},
	{"no SNP level", spec{Extensions: extension(oid(3, 3), nil)}, allow, codeCertificate},
	{"level of 256", spec{Extensions: extension(oid(3, 3), []byte{2, 2, 1, 0})}, allow, codeCertificate},
	{"level of an unknown part", spec{Extensions: extension(oid(3, 5), one)}, allow, codeCertificate},
	{"reported above committed", spec{Edit: put(0x1E6, 23)}, allow, codeTCBOrder},
	{"committed above current", spec{Edit: put(0x3E, 23)}, allow, codeTCBOrder},
	{"launched above current", spec{Edit: put(0x1F6, 25)}, allow, codeTCBOrder},
	{"committed version above current", spec{Edit: put(0x1ED, 56)}, allow, codeTCBOrder},
	{"VMPL 1", spec{Edit: put(0x30, 1)}, allow, codePrivilege},
	{"VMPL 0 where 1 is demanded", spec{}, snp.Expectations{VMPLs: []uint32{1}}, codePrivilege},
	{"debug", spec{Edit: or64(8, 1<<19)}, allow, codeDebug},
	{"migration", spec{Edit: or64(8, 1<<18)}, allow, codeMigration},
	{"policy bit missing", spec{}, snp.Expectations{RequirePolicy: snp.PolicySingleSocket}, codeGuestPolicy},
	{"policy bit forbidden", spec{}, snp.Expectations{ForbidPolicy: snp.PolicySMT}, codeGuestPolicy},
	{"unknown policy bit", spec{}, snp.Expectations{RequirePolicy: 1 << 17}, codeExpectation},
	{"contradiction", spec{}, snp.Expectations{
		RequirePolicy: snp.PolicySMT, ForbidPolicy: snp.PolicySMT,
	}, codeExpectation},
	{"platform bit missing", spec{}, snp.Expectations{RequirePlatform: snp.PlatformTSME}, codePlatform},
	{"platform bit forbidden", spec{}, snp.Expectations{ForbidPlatform: snp.PlatformSMT}, codePlatform},
	{"other product", spec{}, source(snp.Source{Products: []snp.Product{snp.Genoa}}), codeProduct},
	{"VCEK where VLEK is demanded", spec{}, source(snp.Source{Keys: []snp.SigningKey{snp.VLEK}}), codeKeyKind},
	{"VLEK where VCEK is demanded", spec{Key: snp.VLEK}, source(snp.Source{
		Keys: []snp.SigningKey{snp.VCEK},
	}), codeKeyKind},
	{"chip not on the list", spec{}, source(snp.Source{Chips: [][]byte{chip}}), codeChip},
	{"hidden chip with a list", spec{Key: snp.VLEK, Edit: put(0x1A0, make([]byte, 64)...)}, source(snp.Source{
		Chips: [][]byte{make([]byte, 64)},
	}), codeChip},
	{"chip of wrong length", spec{}, source(snp.Source{Chips: [][]byte{chip[:8]}}), codeExpectation},
	{"other provider", spec{Key: snp.VLEK}, source(snp.Source{Providers: []string{"x"}}), codeCloudProvider},
	{"no author key", spec{}, identity(snp.Identity{AuthorKeys: [][]byte{make([]byte, 48)}}), codeIDBlock},
	{"other author key", spec{Edit: keyOf}, identity(snp.Identity{AuthorKeys: [][]byte{key}}), codeIDBlock},
	{"other id key", spec{Edit: keyOf}, identity(snp.Identity{IDKeys: [][]byte{key}}), codeIDBlock},
	{"other family", spec{}, identity(snp.Identity{FamilyIDs: [][]byte{key[:16]}}), codeIDBlock},
	{"other image", spec{}, identity(snp.Identity{ImageIDs: [][]byte{key[:16]}}), codeIDBlock},
	{"guest SVN", spec{Edit: put(4, 2)}, snp.Expectations{MinGuestSVN: 3}, codeIDBlock},
	{"old firmware", spec{}, snp.Expectations{MinFirmware: newer}, codeOutdated},
	{"old reported level", spec{}, least(snp.TCB{SNP: 25}), codeOutdated},
	{"old bootloader", spec{}, least(snp.TCB{Bootloader: 5}), codeOutdated},
	{"old TEE", spec{}, least(snp.TCB{TEE: 2}), codeOutdated},
	{"old microcode", spec{}, least(snp.TCB{Microcode: 220}), codeOutdated},
	{"old FMC", spec{Product: snp.Turin}, snp.Expectations{
		MinTCB: map[snp.Product]snp.TCB{snp.Turin: {FMC: 3}},
	}, codeOutdated},
	{"launched at an old level", spec{Edit: put(0x1F6, 23)}, least(level), codeOutdated},
	{"no minimum for the product", spec{}, snp.Expectations{
		MinTCB: map[snp.Product]snp.TCB{snp.Genoa: {}},
	}, codeExpectation},
	{"registers", spec{}, common(attestation.Expectations{
		Registers: map[string][][]byte{"rtmr0": {key}},
	}), codeExpectation},
	{"report data", spec{}, common(attestation.Expectations{ReportData: key}), codeReportData},
	{"initdata", spec{}, common(attestation.Expectations{InitData: key}), codeInitData},
	{"measurement", spec{}, common(attestation.Expectations{Measurements: [][]byte{key}}), codeMeasurement},
	{"leaf expired", spec{Certificate: expired}, allow, codeCollateralExpired},
	{"intermediate expired", spec{Issuer: expired}, allow, codeCollateralExpired},
	{"leaf not yet valid", spec{Certificate: early}, allow, codeCollateralEarly},
	{"intermediate is no CA", spec{Issuer: func(c *x509.Certificate) { c.IsCA = false }}, allow, codeChain},
	{"intermediate may not sign", spec{Issuer: func(c *x509.Certificate) {
		c.KeyUsage = x509.KeyUsageDigitalSignature
	}}, allow, codeChain},
	{"other algorithm", spec{Certificate: func(c *x509.Certificate) {
		c.SignatureAlgorithm = x509.SHA256WithRSAPSS
	}}, allow, codeChain},
	{"unknown critical extension", spec{Certificate: func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, critical(1, 2, 3))
	}}, allow, codeChain},
	{"intermediate revoked", spec{Revoked: true}, allow, codeRevoked},
	{"list expired", spec{List: func(l *x509.RevocationList) {
		l.NextUpdate = snptest.Now.Add(-time.Second)
	}}, allow, codeCollateralExpired},
	{"list not yet valid", spec{List: func(l *x509.RevocationList) {
		l.ThisUpdate = snptest.Now.Add(time.Second)
	}}, allow, codeCollateralEarly},
	{"list of narrower scope", spec{List: func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{critical(2, 5, 29, 28)}
	}}, allow, codeCollateralInvalid},
}

func common(e attestation.Expectations) snp.Expectations { return snp.Expectations{Expectations: e} }

func critical(arcs ...int) pkix.Extension {
	return pkix.Extension{Id: arcs, Critical: true, Value: []byte{0x30, 0}}
}

func source(s snp.Source) snp.Expectations { return snp.Expectations{Source: s} }

func identity(i snp.Identity) snp.Expectations { return snp.Expectations{Identity: i} }

func least(t snp.TCB) snp.Expectations {
	return snp.Expectations{MinTCB: map[snp.Product]snp.TCB{snp.Milan: t}}
}

func expired(c *x509.Certificate) { c.NotAfter = snptest.Now.Add(-time.Second) }

func early(c *x509.Certificate) { c.NotBefore = snptest.Now.Add(time.Second) }

// Each check refuses what it is for, with its own code.
func TestEachCheckRefuses(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			claims, err := verify(snptest.Make(t, r.spec), r.want)
			if got := codeOf(err); got != r.code || claims != nil {
				t.Errorf("%v, want code %s", err, r.code)
			}
		})
	}
}
