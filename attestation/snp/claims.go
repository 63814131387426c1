// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"encoding/hex"

	"github.com/coco-shim/coco/attestation"
)

// claims returns the report's fields. Details have the names that Trustee's verifier gives them, so that policies which
// were written for it work, and more of ours.
func (r *Report) claims(p Product) attestation.Claims {
	d := map[string]any{
		"version": float64(r.Version), "guest_svn": float64(r.GuestSVN), "vmpl": float64(r.VMPL),
		"product":     string(p),
		"signing_key": r.KeyInfo.SigningKey().String(), "author_key_enabled": r.KeyInfo.AuthorKey(),
		"chip_masked":       r.masked(),
		"measurement":       hex.EncodeToString(r.Launch.Measurement[:]),
		"report_data":       hex.EncodeToString(r.ReportData[:]),
		"init_data":         hex.EncodeToString(r.Launch.HostData[:]),
		"chip_id":           hex.EncodeToString(r.ChipID[:]),
		"family_id":         hex.EncodeToString(r.Launch.FamilyID[:]),
		"image_id":          hex.EncodeToString(r.Launch.ImageID[:]),
		"id_key_digest":     hex.EncodeToString(r.Launch.IDKeyDigest[:]),
		"author_key_digest": hex.EncodeToString(r.Launch.AuthorKeyDigest[:]),
		"report_id":         hex.EncodeToString(r.ReportID[0][:]),
		"report_id_ma":      hex.EncodeToString(r.ReportID[1][:]),
		"current_version":   r.Firmware.Current.String(),
		"committed_version": r.Firmware.Committed.String(),
		"policy_abi_major":  float64(r.Policy >> 8 & 0xFF), "policy_abi_minor": float64(r.Policy & 0xFF),
		"policy_smt_allowed": r.Policy&PolicySMT != 0, "policy_migrate_ma": r.Policy&PolicyMigrateMA != 0,
		"policy_debug_allowed": r.Policy&PolicyDebug != 0, "policy_single_socket": r.Policy&PolicySingleSocket != 0,
		"policy_cxl_allowed":   r.Policy&PolicyCXLAllow != 0,
		"platform_smt_enabled": r.PlatformInfo&PlatformSMT != 0, "platform_tsme_enabled": r.PlatformInfo&PlatformTSME != 0,
		"policy":   names(policyNames, uint64(r.Policy)),
		"platform": names(platformNames, uint64(r.PlatformInfo)),
	}
	if r.Version >= 3 {
		d["cpuid_family"], d["cpuid_model"] = float64(r.CPU.Family), float64(r.CPU.Model)
		d["cpuid_stepping"] = float64(r.CPU.Stepping)
	}
	if r.Version >= 5 {
		d["launch_mit_vector"], d["current_mit_vector"] = float64(r.Firmware.LaunchMit), float64(r.Firmware.CurrentMit)
	}
	for name, raw := range map[string]rawTCB{
		"reported_tcb_": r.TCB.Reported, "committed_tcb_": r.TCB.Committed, "current_tcb_": r.TCB.Current,
		"launch_tcb_": r.TCB.Launch,
	} {
		t, _ := p.TCB(raw)
		for _, part := range t.parts() {
			if p == Turin || part.name != "fmc" {
				d[name+part.name] = float64(part.level)
			}
		}
	}
	return attestation.Claims{
		Type: attestation.SNP, Measurement: r.Launch.Measurement[:], InitData: r.Launch.HostData[:],
		ReportData: r.ReportData[:], Details: d,
	}
}
