// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/coco-shim/coco/attestation"
)

// Bits of the TD's attributes (TDX Module ABI, ATTRIBUTES). Each of the lowest eight bits makes a TD that the host can
// look into.
const (
	attrUntrusted      = 0xff
	attrDebug          = 1 << 0
	attrSEPTVEDisable  = 1 << 28
	attrMigratable     = 1 << 29
	attrProtectionKeys = 1 << 30
	attrKeyLocker      = 1 << 31
	attrPerfmon        = 1 << 63
)

// checkAttributes refuses TDs that the host can look into or move.
func (v *verification) checkAttributes() error {
	attributes := v.quote.Body.Attributes
	if !v.want.AllowDebug {
		if err := v.bits(attestation.CodeDebug, "td_attributes", attributes, Bits{Mask: attrUntrusted}); err != nil {
			return err
		}
	}
	if !v.want.AllowMigration {
		if err := v.bits(attestation.CodeMigration, "td_attributes", attributes, Bits{Mask: attrMigratable}); err != nil {
			return err
		}
		if err := v.checkServiceTD(); err != nil {
			return err
		}
	}
	if err := v.bits(attestation.CodeTDAttributes, "td_attributes", attributes, v.want.Attributes); err != nil {
		return err
	}
	return v.bits(attestation.CodeTDAttributes, "xfam", v.quote.Body.XFAM, v.want.XFAM)
}

// checkServiceTD refuses TDs that are bound to a service TD, such as one for migration, unless the caller names it.
func (v *verification) checkServiceTD() error {
	m := v.quote.Body.Module15
	if m == nil || v.want.Fields["mr_servicetd"] != nil {
		return nil
	}
	none := bytes.Equal(m.MRServiceTD, make([]byte, len(m.MRServiceTD)))
	return v.trail.Check(none, attestation.Check{
		Code: attestation.CodeMigration, Field: "mr_servicetd", Expected: "zeros: no service TD", Got: m.MRServiceTD.String(),
	})
}

func (v *verification) bits(code attestation.Code, field string, got uint64, want Bits) error {
	if want.Mask == 0 {
		return nil
	}
	return v.trail.Check(got&want.Mask == want.Value, attestation.Check{
		Code: code, Field: field, Expected: fmt.Sprintf("%#016x in the bits %#016x", want.Value, want.Mask),
		Got: fmt.Sprintf("%#016x", got),
	})
}

// fields are the fields of the body that Expectations.Fields may name.
func (b Body) fields() map[string]attestation.Hex {
	f := map[string]attestation.Hex{
		"mr_seam": b.MRSeam, "mr_owner": b.MROwner, "mr_owner_config": b.MROwnerConfig,
	}
	if b.Module15 != nil {
		f["mr_servicetd"] = b.Module15.MRServiceTD
	}
	return f
}

func (b Body) registers() map[string]attestation.Hex {
	r := map[string]attestation.Hex{}
	for i, value := range b.RTMR {
		r[fmt.Sprintf("rtmr%d", i)] = value
	}
	return r
}

// checkExpectations compares the measurements.
func (v *verification) checkExpectations() error {
	b, e := v.quote.Body, v.want.Expectations
	if err := v.trail.ReportData(b.ReportData, e); err != nil {
		return err
	}
	if err := v.trail.InitData("mr_config_id", b.MRConfigID, e); err != nil {
		return err
	}
	if err := v.trail.Measurement("mr_td", b.MRTD, e); err != nil {
		return err
	}
	if err := v.trail.Registers(b.registers(), e); err != nil {
		return err
	}
	return v.checkFields()
}

func (v *verification) checkFields() error {
	fields := v.quote.Body.fields()
	for _, name := range slices.Sorted(maps.Keys(v.want.Fields)) {
		if err := v.trail.OneOf(attestation.CodeTDField, name, v.want.Fields[name], fields[name]); err != nil {
			return err
		}
	}
	return nil
}
