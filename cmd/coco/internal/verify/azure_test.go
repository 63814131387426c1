// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/cose/cosetest"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

func TestAnEndorsementStandsForADigest(t *testing.T) {
	digest, err := hex.DecodeString(cosetest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m := snptest.Make(t, snptest.Spec{Edit: func(b []byte) { copy(b[0x90:], digest) }})
	other := snptest.Make(t, snptest.Spec{})
	v := cosetest.Make(t, nil)
	path := filepath.Join(t.TempDir(), "uvm.cose")
	write(t, path, v.Sign(t, cosetest.Body("101"), nil))
	with := func(m *snptest.Made, least string, more ...string) (string, error) {
		_, args := files(t, m)
		args = append(args, "--endorsement", path, "--endorsement-issuer", v.DID, "--endorsement-feed", cosetest.Feed,
			"--endorsement-min-svn", least)
		return run(t, m, nil, append(args, more...)...)
	}
	out, err := with(m, "101", "--json")
	var got result
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Claims.Checks[0].Field != "endorsement.iss" {
		t.Fatalf("%v: %s", err, out)
	}
	for _, i := range got.Claims.Undecided {
		if i == attestation.ItemMeasurement {
			t.Error("the measurement is undecided")
		}
	}
	if out, err := with(other, "101"); exit(err) != 4 || !strings.Contains(err.Error(), "[measurement]") {
		t.Errorf("another digest: %v %s", err, out)
	}
	if out, err := with(m, "102"); exit(err) != 5 || !strings.Contains(err.Error(), "[endorsement-svn]") {
		t.Errorf("an old guest: %v %s", err, out)
	}
	for _, args := range [][]string{
		{"--endorsement", path},
		{"--endorsement-issuer", v.DID},
		{"--endorsement", path, "--endorsement-issuer", v.DID, "--endorsement-feed", cosetest.Feed},
		{"--allow-no-user-data"},
	} {
		_, files := files(t, m)
		if out, err := run(t, m, nil, append(files, args...)...); exit(err) != 1 {
			t.Errorf("%q: %v %s", args, err, out)
		}
	}
	if _, err := with(m, "101", "--reference-values", path); exit(err) != 1 || !strings.Contains(err.Error(), "give one") {
		t.Errorf("two kinds of digests: %v", err)
	}
}

func TestTheReportOfAnAzureVM(t *testing.T) {
	runtime := []byte(`{"keys":[],"vm-configuration":{"secure-boot":true},"user-data":"` + strings.Repeat("A5", 64) + `"}`)
	sum := sha256.Sum256(runtime)
	m := snptest.Make(t, snptest.Spec{Edit: func(b []byte) { clear(b[0x50:0x90]); copy(b[0x50:], sum[:]) }})
	blob := make([]byte, 2600)
	copy(blob, "HCLA\x02")
	blob[12], blob[1224], blob[1228], blob[1232] = 2, 2, 1, byte(len(runtime))
	blob[1233] = byte(len(runtime) >> 8)
	copy(blob[32:], m.Evidence.Report)
	copy(blob[1236:], runtime)
	dir, args := files(t, m)
	args[0] = filepath.Join(dir, "hcl")
	write(t, args[0], blob)
	out, err := run(t, m, nil, append(args, "--report-data", strings.Repeat("a5", 64))...)
	if err != nil || !strings.Contains(out, "user-data") ||
		!strings.Contains(out, "report-data  "+strings.Repeat("a5", 64)) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(t, m, nil, append(args, "--report-data", "00")...); exit(err) != 4 ||
		!strings.Contains(err.Error(), "[user-data]") {
		t.Errorf("other user data: %v", err)
	}
	blob[1240] ^= 1
	write(t, args[0], blob)
	if _, err := run(t, m, nil, args...); exit(err) != 4 && exit(err) != 2 {
		t.Errorf("altered runtime data: %v", err)
	}
	blob[1224] = 4
	write(t, args[0], blob)
	if _, err := run(t, m, nil, args...); exit(err) != 2 || !strings.Contains(err.Error(), "TDREPORT") {
		t.Errorf("a TD: %v", err)
	}
}
