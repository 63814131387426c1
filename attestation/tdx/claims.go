// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/attestation"
)

// claims are what the quote says, by the names that Trustee gives. Integers of the quote are its bytes in hexadecimal.
func (v *verification) claims() attestation.Claims {
	q, b := v.quote, v.quote.Body
	details := map[string]any{
		"quote":         map[string]any{"header": headerClaims(q.Header), "body": bodyClaims(b)},
		"quote_type":    float64(q.BodyType),
		"init_data":     b.MRConfigID.String(),
		"report_data":   b.ReportData.String(),
		"td_attributes": attributeClaims(b.Attributes),

		"tcb_status":                   string(v.verdict.status()),
		"tcb_date":                     stamp(v.verdict.date()),
		"tcb_eval_num":                 float64(v.info.Evaluation),
		"advisory_ids":                 list(v.verdict.advisories()),
		"collateral_expiration_status": map[bool]string{false: "0", true: "1"}[v.expired],
		"earliest_expiration_date":     stamp(v.earliestEnd),
		"fmspc":                        v.platform.fmspc.String(),
	}
	if s, ok := v.moduleStatus["tcb_svn"]; ok {
		details["tdx_module_tcb_status"] = string(s)
	}
	if s, ok := v.moduleStatus["tee_tcb_svn2"]; ok {
		details["tdx_module_tcb_status_now"] = string(s)
	}
	if v.platform.instance != nil {
		// Trustee takes the id from Intel's library as a little-endian number: the certificate's bytes from the last one.
		id := slices.Clone(v.platform.instance)
		slices.Reverse(id)
		details["platform_instance_id"] = id.String()
	}
	for name, on := range v.platform.flags {
		details["is_"+name] = on
	}
	if v.events != nil {
		details["uefi_event_logs"] = v.events
	}
	return attestation.Claims{
		Type: attestation.TDX, Measurement: b.MRTD, Registers: b.registers(), InitData: b.MRConfigID,
		ReportData: b.ReportData,
		Details:    details,
	}
}

func headerClaims(h Header) map[string]any {
	return map[string]any{
		"version": bytes16(h.Version), "att_key_type": bytes16(h.KeyType),
		"tee_type": fmt.Sprintf("%x", binary.LittleEndian.AppendUint32(nil, h.TEEType)),
		"reserved": h.Reserved.String(), "vendor_id": h.Vendor.String(), "user_data": h.UserData.String(),
	}
}

func bodyClaims(b Body) map[string]any {
	c := map[string]any{
		"tcb_svn": fmt.Sprintf("%x", b.TCBSVN), "mr_seam": b.MRSeam.String(), "mrsigner_seam": b.MRSignerSeam.String(),
		"seam_attributes": bytes64(b.SeamAttributes), "td_attributes": bytes64(b.Attributes), "xfam": bytes64(b.XFAM),
		"mr_td": b.MRTD.String(), "mr_config_id": b.MRConfigID.String(), "mr_owner": b.MROwner.String(),
		"mr_owner_config": b.MROwnerConfig.String(), "report_data": b.ReportData.String(),
	}
	for i, r := range b.RTMR {
		c[fmt.Sprintf("rtmr_%d", i)] = r.String()
	}
	if m := b.Module15; m != nil {
		c["tee_tcb_svn2"], c["mr_servicetd"] = fmt.Sprintf("%x", m.TCBSVN2), m.MRServiceTD.String()
		for name, value := range m.extension() {
			c[name] = value.String()
		}
	}
	return c
}

// extension splits the fields that TD15Ext adds.
func (m Module15) extension() map[string]attestation.Hex {
	out := map[string]attestation.Hex{}
	rest := m.Extension
	for _, f := range []struct {
		name string
		size int
	}{
		{"vmid", 1},
		{"td_id", 32},
		{"dev_info", 48},
		{"init_service_td_hash", 48},
		{"init_service_td_attributes", 8},
		{"init_cpu_svn", 16},
		{"init_tee_tcb_svn", 16},
		{"init_tee_fmspc", 12},
		{"cur_service_td_hash", 48},
		{"cur_service_td_attributes", 8},
	} {
		if len(rest) < f.size {
			return out
		}
		out[f.name], rest = rest[:f.size], rest[f.size:]
	}
	return out
}

func attributeClaims(a uint64) map[string]any {
	return map[string]any{
		"debug": a&attrDebug != 0, "septve_disable": a&attrSEPTVEDisable != 0, "migratable": a&attrMigratable != 0,
		"protection_keys": a&attrProtectionKeys != 0, "key_locker": a&attrKeyLocker != 0, "perfmon": a&attrPerfmon != 0,
	}
}

func bytes16(n uint16) string { return fmt.Sprintf("%x", binary.LittleEndian.AppendUint16(nil, n)) }
func bytes64(n uint64) string { return fmt.Sprintf("%x", binary.LittleEndian.AppendUint64(nil, n)) }

func list(s []string) []any {
	out := make([]any, len(s))
	for i := range s {
		out[i] = s[i]
	}
	return out
}
