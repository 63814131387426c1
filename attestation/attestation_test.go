// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func code(err error) Code {
	if f, ok := FailureOf(err); ok {
		return f.Code
	}
	return ""
}

func TestZeroExpectationsAcceptNothing(t *testing.T) {
	field := make([]byte, 48)
	for name, err := range map[string]error{
		"report data": new(Trail).ReportData(field, Expectations{}),
		"initdata":    new(Trail).InitData("hostdata", field, Expectations{}),
		"measurement": new(Trail).Measurement("mrtd", field, Expectations{}),
	} {
		if code(err) != CodeExpectation {
			t.Errorf("%s: %v, want %s", name, err, CodeExpectation)
		}
	}
}

func TestUndecidedItemsAreToldInTheClaims(t *testing.T) {
	var trail Trail
	e := Expectations{Undecided: []Item{ItemMeasurement, ItemInitData, ItemReportData}}
	field := make([]byte, 48)
	err := errors.Join(trail.ReportData(field, e), trail.InitData("hostdata", field, e))
	err = errors.Join(err, trail.Measurement("mrtd", field, e))
	if err != nil {
		t.Fatal(err)
	}
	c := trail.Claim(Claims{Type: SNP})
	want := []Item{ItemReportData, ItemInitData, ItemMeasurement}
	if !slices.Equal(c.Undecided, want) || len(c.Checks) > 0 {
		t.Errorf("undecided %v, checks %v; want %v and none", c.Undecided, c.Checks, want)
	}
}

func TestValuesAreCompared(t *testing.T) {
	d := bytes.Repeat([]byte{7}, 48)
	other := bytes.Repeat([]byte{8}, 48)
	data := append(bytes.Repeat([]byte{7}, 48), make([]byte, 16)...)
	longer := append(d[:48:48], append(make([]byte, 15), 1)...)
	filled := append(d[:32:32], make([]byte, 16)...)
	in := map[string]Hex{"rtmr1": d}
	allow := func(v []byte) Expectations { return Expectations{Registers: map[string][][]byte{"rtmr1": {v}}} }
	for _, tc := range []struct {
		name string
		err  error
		want Code
	}{
		{"report data with zeros after it", new(Trail).ReportData(data, Expectations{ReportData: d}), ""},
		{"report data of another request", new(Trail).ReportData(data, Expectations{ReportData: other}), CodeReportData},
		{"report data with a tail", new(Trail).ReportData(longer, Expectations{ReportData: d}), CodeReportData},
		{"empty report data", new(Trail).ReportData(data, Expectations{ReportData: []byte{}}), CodeExpectation},
		{"report data that is too long", new(Trail).ReportData(d, Expectations{ReportData: data}), CodeExpectation},
		{"initdata of the field's length", new(Trail).InitData("f", d, Expectations{InitData: d}), ""},
		{"initdata that is cut", new(Trail).InitData("f", d[:32], Expectations{InitData: d}), ""},
		{"initdata that is filled", new(Trail).InitData("f", filled, Expectations{InitData: d[:32]}), ""},
		{"initdata with a tail", new(Trail).InitData("f", d, Expectations{InitData: d[:32]}), CodeInitData},
		{"initdata that is no digest", new(Trail).InitData("f", d, Expectations{InitData: d[:31]}), CodeExpectation},
		{"an allowed measurement", new(Trail).Measurement("f", d, Expectations{Measurements: [][]byte{other, d}}), ""},
		{"another measurement", new(Trail).Measurement("f", d, Expectations{Measurements: [][]byte{other}}), CodeMeasurement},
		{"no allowed measurement", new(Trail).Measurement("f", d, Expectations{Measurements: [][]byte{}}), CodeMeasurement},
		{"an empty measurement", new(Trail).Measurement("f", nil, Expectations{Measurements: [][]byte{{}}}), CodeMeasurement},
		{"a register", new(Trail).Registers(in, allow(d)), ""},
		{"another register", new(Trail).Registers(in, allow(other)), CodeRegister},
		{"a register that is missing", new(Trail).Registers(nil, allow(d)), CodeRegister},
	} {
		if got := code(tc.err); got != tc.want || (tc.want == "") != (tc.err == nil) {
			t.Errorf("%s: %v, want code %q", tc.name, tc.err, tc.want)
		}
	}
}

func TestFailureIsOneSentenceWithItsRemedy(t *testing.T) {
	err := Fail(CodeDebug, "policy.debug", "0", "1", io.ErrUnexpectedEOF)
	want := "policy.debug: expected 0, got 1 (unexpected EOF) [debug]: launch the guest without debugging"
	if err.Error() != want || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, want %q", err, want)
	}
}

func TestEveryCodeIsExplained(t *testing.T) {
	codes := Codes()
	if len(slices.Compact(slices.Clone(codes))) != len(codes) {
		t.Errorf("a code stands in two tables: %v", codes)
	}
	for _, c := range codes {
		e := c.Explain()
		if e.Class == "" || !strings.HasSuffix(e.Means, ".") || e.Do == "" {
			t.Errorf("%s is not explained: %+v", c, e)
		}
	}
	if e := Code("no-such").Explain(); e != (Explanation{}) {
		t.Errorf("an unknown code is explained: %+v", e)
	}
}

func TestClaimsPrintHexadecimal(t *testing.T) {
	text, err := json.Marshal(Claims{Type: SNP, Measurement: Hex{0xab, 1}, Registers: map[string]Hex{"pcr08": {2}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"type":"snp","measurement":"ab01","registers":{"pcr08":"02"},"report_data":"","details":null,"checks":null}`
	if string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
}
