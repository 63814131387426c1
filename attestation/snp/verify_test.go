// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

// verify verifies a made report. With no expectations, everything about the workload is undecided.
func verify(m *snptest.Made, want snp.Expectations) (*attestation.Claims, error) {
	want.Undecided = append(want.Undecided, undecided().Undecided...)
	return m.Verifier.Verify(m.Evidence, m.Collateral(), want)
}

// sequence returns n bytes that begin with a value and count on.
func sequence(from byte, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

// full are expectations that leave nothing undecided.
func full() snp.Expectations {
	return snp.Expectations{
		Expectations: attestation.Expectations{
			ReportData: sequence(0xA0, 64), InitData: sequence(0x40, 32), Measurements: [][]byte{sequence(1, 48)},
		},
		MinTCB: map[snp.Product]snp.TCB{
			snp.Milan: {Bootloader: 4, SNP: 24}, snp.Genoa: {SNP: 23}, snp.Turin: {FMC: 2, SNP: 24},
		},
	}
}

// Each product, version of the report and kind of key is accepted, with every item decided.
func TestGenuineReportsAreAccepted(t *testing.T) {
	for _, p := range []snp.Product{snp.Milan, snp.Genoa, snp.Turin} {
		for _, version := range []uint32{2, 3, 4, 5} {
			for _, key := range []snp.SigningKey{snp.VCEK, snp.VLEK} {
				for _, hwid := range []string{"der", "raw"} {
					if hwid == "raw" && (version != 3 || key == snp.VLEK) {
						continue
					}
					name := fmt.Sprintf("%s version %d %s %s", p, version, key, hwid)
					t.Run(name, func(t *testing.T) {
						m := snptest.Make(t, snptest.Spec{Product: p, Version: version, Key: key, HWID: hwid})
						c, err := m.Verifier.Verify(m.Evidence, m.Collateral(), full())
						if err != nil {
							t.Fatal(err)
						}
						if len(c.Undecided) > 0 || c.Details["product"] != string(p) || c.Details["reported_tcb_snp"] != 24.0 {
							t.Errorf("claims %+v", c)
						}
						if _, fmc := c.Details["reported_tcb_fmc"]; fmc != (p == snp.Turin) {
							t.Errorf("reported_tcb_fmc of %s: %v", p, c.Details["reported_tcb_fmc"])
						}
					})
				}
			}
		}
	}
}

func TestSienaAndBergamoBelongToGenoa(t *testing.T) {
	for name, model := range map[string]byte{"Siena-B0": 0xA0, "Bergamo-B0": 0xAF, "Genoa-B1": 0x1F} {
		m := snptest.Make(t, snptest.Spec{
			Product: snp.Genoa, Name: name, Edit: func(b []byte) { b[0x189] = model },
		})
		if _, err := verify(m, snp.Expectations{}); err != nil {
			t.Errorf("%s, model %#x: %v", name, model, err)
		}
	}
}

// A report that is allowed explicitly is accepted.
func TestEachAllowanceAccepts(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec snptest.Spec
		want snp.Expectations
	}{
		{"VMPL 1", snptest.Spec{Key: snp.VLEK, Edit: put(0x30, 1)}, snp.Expectations{VMPLs: []uint32{0, 1}}},
		{"debug", snptest.Spec{Edit: or64(8, 1<<19)}, snp.Expectations{AllowDebug: true}},
		{"migration", snptest.Spec{Edit: or64(8, 1<<18)}, snp.Expectations{AllowMigration: true}},
		{"policy bits", snptest.Spec{Edit: or64(8, 1<<22)}, snp.Expectations{
			RequirePolicy: snp.PolicyMemAES256XTS, ForbidPolicy: snp.PolicyCXLAllow,
		}},
		{"platform bits", snptest.Spec{}, snp.Expectations{
			RequirePlatform: snp.PlatformAliasCheck, ForbidPlatform: snp.PlatformTSME,
		}},
		{"chip", snptest.Spec{}, source(snp.Source{Chips: [][]byte{chip, snptest.Chip[:]}})},
		{"chip of Turin, 8 bytes", snptest.Spec{Product: snp.Turin}, source(snp.Source{Chips: [][]byte{snptest.Chip[:8]}})},
		{"chip of Turin, 64 bytes", snptest.Spec{Product: snp.Turin}, source(snp.Source{Chips: [][]byte{snptest.Chip[:]}})},
		{"provider", snptest.Spec{Key: snp.VLEK}, source(snp.Source{Providers: []string{"x", "provider.example"}})},
		{"hidden chip by VLEK", snptest.Spec{Key: snp.VLEK, Edit: func(b []byte) {
			copy(b[0x1A0:], make([]byte, 64))
			b[0x48] |= 2
		}}, allow},
		{"product and key", snptest.Spec{}, source(snp.Source{
			Products: []snp.Product{snp.Milan}, Keys: []snp.SigningKey{snp.VCEK},
		})},
		{"ID block", snptest.Spec{Edit: keyOf}, snp.Expectations{Identity: snp.Identity{
			IDKeys: [][]byte{key, sequence(0x33, 48)}, AuthorKeys: [][]byte{sequence(0x66, 48)},
			FamilyIDs: [][]byte{make([]byte, 16)},
		}}},
		{"guest SVN", snptest.Spec{Edit: put(4, 3)}, snp.Expectations{MinGuestSVN: 3}},
		{"firmware", snptest.Spec{}, snp.Expectations{MinFirmware: snp.Version{Major: 1, Minor: 55, Build: 29}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := verify(snptest.Make(t, tc.spec), tc.want); err != nil {
				t.Error(err)
			}
		})
	}
}

// After a firmware update, the reported level follows the committed one later: both states are in order.
func TestAFirmwareUpdateInProgressIsAccepted(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{Edit: func(b []byte) {
		b[0x3E], b[0x1E6] = 26, 25 // current, committed; reported and launched are 24
		b[0x1E8] = 30              // current build
	}})
	if _, err := verify(m, least(level)); err != nil {
		t.Error(err)
	}
}

// The zero verifier trusts nobody, zero expectations accept nothing, the zero time is none.
func TestZeroValuesAreSafe(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	if _, err := (snp.Verifier{}).Verify(m.Evidence, m.Collateral(), full()); codeOf(err) != attestation.CodeChain {
		t.Errorf("zero verifier: %v", err)
	}
	if _, err := snp.AMD().Verify(m.Evidence, m.Collateral(), full()); codeOf(err) != attestation.CodeChain {
		t.Errorf("AMD's roots and a chain of ours: %v", err)
	}
	if _, err := m.Verifier.Verify(m.Evidence, m.Collateral(), snp.Expectations{}); codeOf(err) != codeExpectation {
		t.Errorf("zero expectations: %v", err)
	}
	for _, item := range undecided().Undecided {
		want := full()
		col := m.Collateral()
		switch item {
		case attestation.ItemReportData:
			want.ReportData = nil
		case attestation.ItemInitData:
			want.InitData = nil
		case attestation.ItemMeasurement:
			want.Measurements = nil
		case snp.ItemTCB:
			want.MinTCB = nil
		case snp.ItemRevocation:
			col.Documents = col.Documents[:2]
		}
		_, err := m.Verifier.Verify(m.Evidence, col, want)
		if got := codeOf(err); got != attestation.CodeExpectation && got != attestation.CodeCollateralMissing {
			t.Errorf("without %s: %v", item, err)
		}
		want.Undecided = []attestation.Item{item}
		c, err := m.Verifier.Verify(m.Evidence, col, want)
		if err != nil || !slices.Equal(c.Undecided, want.Undecided) {
			t.Errorf("with %s undecided: %v, %+v", item, err, c)
		}
	}
	col := m.Collateral()
	col.Now = time.Time{}
	if _, err := m.Verifier.Verify(m.Evidence, col, full()); codeOf(err) != attestation.CodeExpectation {
		t.Errorf("zero time: %v", err)
	}
	ev := m.Evidence
	ev.Type = ""
	if _, err := m.Verifier.Verify(ev, m.Collateral(), full()); codeOf(err) != attestation.CodeMalformed {
		t.Errorf("no type: %v", err)
	}
}

// Expired collateral is accepted only when the caller says so; early collateral never is.
func TestExpiredCollateralNeedsLeave(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	for _, tc := range []struct {
		now   time.Time
		allow bool
		want  attestation.Code
	}{
		{snptest.Now.AddDate(5, 0, 0), false, attestation.CodeCollateralExpired},
		{snptest.Now.AddDate(5, 0, 0), true, ""},
		{snptest.Now.AddDate(-5, 0, 0), true, attestation.CodeCollateralEarly},
	} {
		col := m.Collateral()
		col.Now, col.AllowExpired = tc.now, tc.allow
		if _, err := m.Verifier.Verify(m.Evidence, col, full()); codeOf(err) != tc.want {
			t.Errorf("at %s, expired allowed %t: %v, want %q", tc.now, tc.allow, err, tc.want)
		}
	}
}

// Every bit that is signed counts. Bits after the signature's numbers are not signed, and change no claim.
func TestEverySignedBitCounts(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{Version: 5, Product: snp.Turin})
	clean, err := verify(m, allow)
	if err != nil {
		t.Fatal(err)
	}
	const signed, numbers = 0x2A0, 0x2A0 + 144
	report := m.Evidence.Report
	step := 31 // all of them take half a minute
	if os.Getenv("COCO_EVERY_BIT") != "" {
		step = 1
	}
	for i := 0; i < snp.ReportSize*8; i += step {
		m.Evidence.Report = slices.Clone(report)
		m.Evidence.Report[i/8] ^= 1 << (i % 8)
		c, err := verify(m, allow)
		switch {
		case i/8 < numbers && err == nil:
			t.Errorf("bit %d of byte %#x is flipped, and the report is accepted", i%8, i/8)
		case i/8 >= numbers && (err != nil || !cmp.Equal(c, clean)):
			t.Errorf("bit %d of byte %#x, which is not signed: %v, %s", i%8, i/8, err, cmp.Diff(clean, c))
		}
	}
}

func TestEveryPartOfTheCertificatesCounts(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	leaf, middle := m.Leaf, m.Middle
	for i := 0; i < len(leaf); i += 3 {
		m.Leaf = slices.Clone(leaf)
		m.Leaf[i] ^= 1 << (i % 8)
		if _, err := verify(m, allow); err == nil {
			t.Errorf("byte %d of the certificate is changed, and the report is accepted", i)
		}
	}
	m.Leaf = leaf
	for i := 1; i < len(middle); i += 3 {
		m.Middle = slices.Clone(middle)
		m.Middle[i] ^= 1 << (i % 8)
		if _, err := verify(m, allow); err == nil {
			t.Errorf("byte %d of the issuer's certificate is changed, and the report is accepted", i)
		}
	}
}

// The host's table serves as well as documents, and a stale certificate in it does not hide the right one.
func TestCertificatesOfTheHost(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	stale := snptest.Make(t, snptest.Spec{TCB: snp.TCB{SNP: 3}})
	vlek := snptest.Make(t, snptest.Spec{Key: snp.VLEK})
	ask := snptest.Entry{GUID: snptest.GUIDASK, Data: m.Middle}
	table := func(e ...snptest.Entry) []byte { return snptest.Table(t, e...) }
	list := attestation.Document{Kind: snp.KindCRL, Data: m.List}
	leaf := attestation.Document{Kind: snp.KindVCEK, Name: "leaf", Data: m.Leaf}
	for _, tc := range []struct {
		name  string
		made  *snptest.Made
		table []byte
		docs  []attestation.Document
		want  attestation.Code
	}{
		{"in the table", m, table(snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf}, ask), nil, ""},
		{"VLEK in the table", vlek, table(
			snptest.Entry{GUID: snptest.GUIDVLEK, Data: vlek.Leaf}, snptest.Entry{GUID: snptest.GUIDASK, Data: vlek.Middle},
		), nil, ""},
		{"unknown entry", m, table(
			snptest.Entry{GUID: "0102030405060708090a0b0c0d0e0f10", Data: []byte("new")},
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf}, ask,
		), nil, ""},
		{"stale in the table, right as document", m, table(
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: stale.Leaf}, ask,
		), []attestation.Document{leaf}, ""},
		{"right in the table, stale as document", m, table(
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf}, ask,
		), []attestation.Document{{Kind: snp.KindVCEK, Data: stale.Leaf}}, ""},
		{"garbage in the table, right as document", m, table(
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: []byte("x")}, ask,
		), []attestation.Document{leaf}, ""},
		{"stale only", m, table(
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: stale.Leaf}, ask,
		), nil, attestation.CodeSignature},
		{"VCEK for a report of a VLEK", vlek, table(
			snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf}, ask,
		), nil, attestation.CodeCollateralMissing},
		{"VCEK under the GUID of VLEK", vlek, table(
			snptest.Entry{GUID: snptest.GUIDVLEK, Data: m.Leaf}, ask,
		), nil, attestation.CodeCertificate},
		{"no issuer", m, table(snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf}), nil, attestation.CodeChain},
		{"nothing", m, nil, nil, attestation.CodeCollateralMissing},
		{"cut table", m, table(ask)[:30], nil, attestation.CodeMalformed},
		{"entry outside", m, table(ask)[:60], nil, attestation.CodeMalformed},
		{"entry twice", m, table(ask, ask), []attestation.Document{leaf}, attestation.CodeMalformed},
		{"large table", m, make([]byte, 1<<20), nil, attestation.CodeMalformed},
		{"table without end", m, bytes.Repeat([]byte{1}, 24), nil, attestation.CodeMalformed},
		{"document that is none", m, nil, []attestation.Document{
			{Kind: snp.KindVCEK, Data: []byte("x")},
		}, attestation.CodeCollateralInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ev := tc.made.Evidence
			ev.Certificates = tc.table
			col := attestation.Collateral{Now: snptest.Now, Documents: append(tc.docs, list)}
			_, err := tc.made.Verifier.Verify(ev, col, undecided())
			if got := codeOf(err); got != tc.want {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// Lists of revoked certificates: another root's counts for nothing, a changed one is refused, the newest counts.
func TestRevocationLists(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	revoked := snptest.Make(t, snptest.Spec{Revoked: true, List: func(l *x509.RevocationList) {
		l.Number, l.ThisUpdate = big.NewInt(2), snptest.Now.AddDate(0, 0, -1)
	}})
	genoa := snptest.Make(t, snptest.Spec{Product: snp.Genoa})
	changed := slices.Clone(m.List)
	changed[len(changed)-1] ^= 1
	for _, tc := range []struct {
		name  string
		lists [][]byte
		want  attestation.Code
	}{
		{"none", nil, ""},
		{"one", [][]byte{m.List}, ""},
		{"another root's", [][]byte{genoa.List}, attestation.CodeCollateralMissing},
		{"another root's and ours", [][]byte{genoa.List, m.List}, ""},
		{"newest revokes", [][]byte{revoked.List, m.List}, attestation.CodeRevoked},
		{"changed", [][]byte{changed}, attestation.CodeCollateralInvalid},
		{"garbage", [][]byte{[]byte("x")}, attestation.CodeCollateralInvalid},
		{"too large", [][]byte{make([]byte, 2<<20)}, attestation.CodeCollateralInvalid},
	} {
		col := m.Collateral()
		col.Documents = col.Documents[:2]
		for _, l := range tc.lists {
			col.Documents = append(col.Documents, attestation.Document{Kind: snp.KindCRL, Data: l})
		}
		if _, err := m.Verifier.Verify(m.Evidence, col, undecided()); codeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestRequests(t *testing.T) {
	type request = attestation.Request
	hwid := fmt.Sprintf("%x", snptest.Chip)
	const kds = "https://kdsintf.amd.com/"
	crl := func(kind, p string) request {
		name := kind + "/v1/" + p + "/crl"
		return request{Kind: snp.KindCRL, Name: name + ".der", URL: kds + name}
	}
	const query = "blSPL=04&teeSPL=01&snpSPL=24&ucodeSPL=219"
	vcek := func(prefix, p, chip, file, query string) request {
		return request{
			Kind: snp.KindVCEK, Name: prefix + "vcek/" + chip + "/" + file + "_vcek.der",
			URL: kds + "vcek/v1/" + p + "/" + chip + "?" + query,
		}
	}
	const file = "bl04_tee01_snp24_ucode219"
	withTable := snptest.Make(t, snptest.Spec{Version: 2})
	withTable.Evidence.Certificates = snptest.Table(t, snptest.Entry{GUID: snptest.GUIDVCEK, Data: withTable.Leaf})
	for _, tc := range []struct {
		name string
		made *snptest.Made
		want []request
	}{
		{"Genoa", snptest.Make(t, snptest.Spec{Product: snp.Genoa}), []request{
			vcek("", "Genoa", hwid, file, query), crl("vcek", "Genoa"),
		}},
		{"Turin", snptest.Make(t, snptest.Spec{Product: snp.Turin}), []request{
			vcek("", "Turin", hwid[:16], file+"_fmc02", "fmcSPL=02&"+query), crl("vcek", "Turin"),
		}},
		{"version 2", snptest.Make(t, snptest.Spec{Version: 2}), []request{
			vcek("Milan/", "Milan", hwid, file, query), crl("vcek", "Milan"),
			vcek("Genoa/", "Genoa", hwid, file, query), crl("vcek", "Genoa"),
		}},
		{"version 2 with the host's certificate", withTable, []request{crl("vcek", "Milan")}},
		{"VLEK", snptest.Make(t, snptest.Spec{Key: snp.VLEK}), []request{crl("vlek", "Milan")}},
	} {
		got, err := snp.Requests(tc.made.Evidence)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
	if _, err := snp.Requests(attestation.Evidence{Report: []byte("x")}); codeOf(err) != attestation.CodeMalformed {
		t.Errorf("no report: %v", err)
	}
}
