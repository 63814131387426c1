// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
)

// Item names something on which the caller must have an opinion.
type Item string

// Items that every verifier knows. An item of one platform stands in its package.
const (
	ItemReportData  Item = "report-data" // freshness: no replay of evidence that another guest or time has made
	ItemInitData    Item = "init-data"   // configuration and policy of the pod
	ItemMeasurement Item = "measurement" // code that was launched
)

// Expectations are what the caller demands of evidence of any type. The zero value accepts nothing: each item needs a
// value or stands in Undecided.
type Expectations struct {
	// ReportData is what the guest was asked to have signed. Evidence with a longer field must have zeros after it.
	ReportData []byte
	// InitData is the digest of the initdata. It is cut or filled with zeros to the length of the platform's field.
	InitData []byte
	// Measurements are the launch digests of which one must be the evidence's.
	Measurements [][]byte
	// Registers are the allowed values of registers, by the names in Claims.Registers. A register without an entry may
	// have any value.
	Registers map[string][][]byte
	// Undecided are items that Verify does not compare, because the caller decides on the claims itself.
	Undecided []Item
}

// Leaves tells whether the caller decides on the item itself.
func (e Expectations) Leaves(i Item) bool { return slices.Contains(e.Undecided, i) }

// Hex is a value that is printed as lower-case hexadecimal.
type Hex []byte

// String returns the hexadecimal digits.
func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText encodes the value for JSON.
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Trail records the checks of one verification, in order. Each method adds a check that holds, or returns the *Failure.
// The verifier returns at the first one.
type Trail struct {
	checks    []Check
	undecided []Item
}

// Claim returns claims with all that the trail has recorded.
func (t *Trail) Claim(c Claims) *Claims {
	c.Checks, c.Undecided = slices.Clone(t.checks), slices.Clone(t.undecided)
	return &c
}

// Fork returns a trail that begins with the same checks and grows apart from this one.
func (t *Trail) Fork() Trail {
	return Trail{checks: slices.Clone(t.checks), undecided: slices.Clone(t.undecided)}
}

// Check adds a check, which holds if ok.
func (t *Trail) Check(ok bool, c Check) error {
	if !ok {
		return &Failure{Check: c}
	}
	t.checks = append(t.checks, c)
	return nil
}

// ReportData compares what the guest asked to have signed.
func (t *Trail) ReportData(got []byte, e Expectations) error {
	if given, err := t.decide(ItemReportData, e.ReportData != nil, e); !given {
		return err
	}
	want := e.ReportData
	if len(want) == 0 || len(want) > len(got) {
		return Fail(CodeExpectation, string(ItemReportData), "1 to "+itoa(len(got))+" bytes", itoa(len(want))+" bytes", nil)
	}
	return t.equal(CodeReportData, string(ItemReportData), fit(want, len(got)), got)
}

// InitData compares the field that binds the initdata with the digest that the caller computed of it.
func (t *Trail) InitData(field string, got []byte, e Expectations) error {
	if given, err := t.decide(ItemInitData, e.InitData != nil, e); !given {
		return err
	}
	if n := len(e.InitData); n < 32 || n > 64 {
		return Fail(CodeExpectation, field, "a digest of 32 to 64 bytes", itoa(n)+" bytes", nil)
	}
	return t.equal(CodeInitData, field, fit(e.InitData, len(got)), got)
}

// Measurement looks for the launch digest among those that are allowed.
func (t *Trail) Measurement(field string, got []byte, e Expectations) error {
	if given, err := t.decide(ItemMeasurement, e.Measurements != nil, e); !given {
		return err
	}
	return t.OneOf(CodeMeasurement, field, e.Measurements, got)
}

// Registers looks for the value of each register that the caller has an opinion on. A register that the evidence lacks
// is a failure.
func (t *Trail) Registers(got map[string]Hex, e Expectations) error {
	for _, name := range sortedKeys(e.Registers) {
		if err := t.OneOf(CodeRegister, name, e.Registers[name], got[name]); err != nil {
			return err
		}
	}
	return nil
}

// OneOf looks for a value among those that are allowed. An empty value is never allowed.
func (t *Trail) OneOf(code Code, field string, allowed [][]byte, got []byte) error {
	texts := make([]string, len(allowed))
	ok := false
	for i, a := range allowed {
		texts[i] = hex.EncodeToString(a)
		ok = ok || (len(a) > 0 && bytes.Equal(a, got))
	}
	c := Check{Code: code, Field: field, Expected: strings.Join(texts, " or "), Got: hex.EncodeToString(got)}
	switch {
	case ok:
		c.Expected = "one of " + itoa(len(allowed)) + " allowed"
	case len(allowed) == 0:
		c.Expected = "none is allowed"
	}
	if c.Got == "" {
		c.Got = "none"
	}
	return t.Check(ok, c)
}

// decide tells whether the caller gave a value for the item. Without one the item must be undecided.
func (t *Trail) decide(i Item, given bool, e Expectations) (bool, error) {
	switch {
	case given:
		return true, nil
	case e.Leaves(i):
		t.Undecided(i)
		return false, nil
	}
	const want = "a value to compare with, or the item named as undecided"
	return false, Fail(CodeExpectation, string(i), want, "neither", nil)
}

// Undecided records that the caller decides on the item itself.
func (t *Trail) Undecided(i Item) { t.undecided = append(t.undecided, i) }

func (t *Trail) equal(code Code, field string, want, got []byte) error {
	return t.Check(bytes.Equal(want, got), Check{code, field, hex.EncodeToString(want), hex.EncodeToString(got)})
}

// fit cuts the value or fills it with zeros at its end.
func fit(v []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, v)
	return out
}
