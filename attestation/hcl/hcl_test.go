// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hcl

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

// runtime is runtime data with user data.
func runtime(user []byte) []byte {
	text := ""
	if user != nil {
		text = strings.ToUpper(hex.EncodeToString(user))
	}
	return fmt.Appendf(nil, `{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"AQ","e":"AQAB"},{"kid":"HCLEkPub"}],`+
		`"vm-configuration":{"secure-boot":true,"tpm-enabled":true},"user-data":%q}`, text)
}

// blob is one of the given size, with a report that is bound to its runtime data.
func blob(t *testing.T, size int, data []byte) ([]byte, *snptest.Made) {
	t.Helper()
	sum := sha256.Sum256(data)
	m := snptest.Make(t, snptest.Spec{Edit: func(b []byte) {
		clear(b[0x50:0x90])
		copy(b[0x50:], sum[:])
	}})
	b := make([]byte, size)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[offVersion:], 2)
	le.PutUint32(b[offRequest:], requestReport)
	copy(b[offReport:], m.Evidence.Report)
	le.PutUint32(b[offType:], typeSNP)
	le.PutUint32(b[offHash:], hashSHA256)
	le.PutUint32(b[offLength:], uint32(len(data)))
	copy(b[offRuntime:], data)
	return b, m
}

// want leaves everything but the user data to the caller.
func want(user []byte) snp.Expectations {
	w := snp.Expectations{Expectations: attestation.Expectations{ReportData: user, Undecided: []attestation.Item{
		attestation.ItemInitData, attestation.ItemMeasurement, snp.ItemTCB, snp.ItemRevocation,
	}}}
	if user == nil {
		w.Undecided = append(w.Undecided, attestation.ItemReportData)
	}
	return w
}

func verify(t *testing.T, b []byte, m *snptest.Made, w snp.Expectations, none bool) (*attestation.Claims, error) {
	t.Helper()
	e, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return Verify(m.Verifier, e, m.Collateral(), w, none)
}

func TestBlobsOfBothSizes(t *testing.T) {
	user := bytes.Repeat([]byte{0xA5}, 64)
	for _, size := range []int{2048, 2600} {
		b, m := blob(t, size, runtime(user))
		for _, u := range [][]byte{user, nil} {
			c, err := verify(t, b, m, want(u), false)
			if err != nil {
				t.Fatalf("%d: %v", size, err)
			}
			if !bytes.Equal(c.ReportData, user) || c.Details["report_data"] != hex.EncodeToString(user) {
				t.Errorf("%d: report data %s", size, c.ReportData)
			}
			if undecided := len(c.Undecided) == 4; undecided != (u == nil) {
				t.Errorf("%d: undecided %v", size, c.Undecided)
			}
		}
	}
}

func TestUserDataMustBeWhatWasAskedFor(t *testing.T) {
	user := bytes.Repeat([]byte{1}, 32)
	for _, tc := range []struct {
		name string
		have []byte
		want []byte
		none bool
		code attestation.Code // empty: it holds
	}{
		{"shorter than the field", user, user, false, ""},
		{"another", user, bytes.Repeat([]byte{2}, 32), false, attestation.CodeUserData},
		{"longer", user, bytes.Repeat([]byte{1}, 33), false, attestation.CodeUserData},
		{"none, and one was asked for", nil, user, true, attestation.CodeUserData},
		{"zeros", make([]byte, 64), nil, false, attestation.CodeUserData},
		{"none", nil, nil, false, attestation.CodeUserData},
		{"none, allowed", nil, nil, true, ""},
		{"zeros, allowed", make([]byte, 64), nil, true, ""},
		{"an empty expectation", user, []byte{}, false, attestation.CodeExpectation},
		{"a too long expectation", user, make([]byte, 65), false, attestation.CodeExpectation},
	} {
		b, m := blob(t, 2600, runtime(tc.have))
		_, err := verify(t, b, m, want(tc.want), tc.none)
		f, failed := attestation.FailureOf(err)
		if failed != (tc.code != "") || failed && f.Code != tc.code {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.code)
		}
	}
	b, m := blob(t, 2600, runtime(user))
	w := want(nil)
	w.Undecided = w.Undecided[:4]
	if _, err := verify(t, b, m, w, true); err == nil {
		t.Error("user data that the caller has no opinion on is accepted")
	}
}

// Whatever is changed in the report, the runtime data or the fields that lead to them, the blob is refused.
func TestNoFlippedBitIsAccepted(t *testing.T) {
	user := bytes.Repeat([]byte{1}, 64)
	data := runtime(user)
	b, m := blob(t, 2600, data)
	signed := 0x2A0 + 2*72
	places := []int{0, offVersion + 1, offRequest, offType, offHash, offLength}
	for i := 0; i < signed; i += 23 {
		places = append(places, offReport+i)
	}
	for i := 0; i < len(data); i += 5 {
		places = append(places, offRuntime+i)
	}
	for _, at := range places {
		b[at] ^= 4
		if _, err := verify(t, b, m, want(user), false); err == nil {
			t.Errorf("byte %d may be another", at)
		}
		b[at] ^= 4
	}
}

func TestBlobsThatAreNone(t *testing.T) {
	good, _ := blob(t, 2048, runtime(nil))
	for name, edit := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(b []byte) []byte { return b[:offRuntime-1] },
		"too long":  func([]byte) []byte { return append([]byte(magic), make([]byte, MaxSize)...) },
		"a TD":      func(b []byte) []byte { b[offType] = typeTDX; return b },
		"no JSON":   func(b []byte) []byte { b[offRuntime] = 'x'; return b },
		"no length": func(b []byte) []byte { clear(b[offLength:offRuntime]); return b },
		"a length beyond the end": func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[offLength:], uint32(len(b)-offRuntime+1))
			return b
		},
		"the largest length": func(b []byte) []byte { copy(b[offLength:], "\xff\xff\xff\xff"); return b },
	} {
		if e, err := Parse(edit(bytes.Clone(good))); err == nil {
			t.Errorf("%s: %+v", name, e)
		} else if _, ok := attestation.FailureOf(err); !ok {
			t.Errorf("%s: %v has no code", name, err)
		}
	}
	if _, err := Parse(bytes.Clone(good)); err != nil {
		t.Error(err)
	}
	long, _ := blob(t, 4096, runtime(make([]byte, 65)))
	if _, err := Parse(long); err == nil {
		t.Error("65 bytes of user data")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(magic))
	b := make([]byte, 1300)
	copy(b, magic)
	b[offVersion], b[offRequest], b[offType], b[offHash], b[offLength] = 1, 2, 2, 1, 2
	copy(b[offRuntime:], "{}")
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err == nil && (len(e.Report) != snp.ReportSize || len(e.UserData) > maxUser) {
			t.Fatalf("%+v", e)
		}
	})
}
