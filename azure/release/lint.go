// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Names of claims of Microsoft Azure Attestation. Those of the TEE stand at the top level of a token of SevSnpVm and
// TdxVm, and below Nested in one of AzureGuest, which a confidential VM gets.
const (
	Nested          = "x-ms-isolation-tee"
	ClaimType       = "x-ms-attestation-type"
	ClaimCompliance = "x-ms-compliance-status"

	ClaimHostData    = "x-ms-sevsnpvm-hostdata"
	ClaimMeasurement = "x-ms-sevsnpvm-launchmeasurement"
	ClaimDebuggable  = "x-ms-sevsnpvm-is-debuggable"
	ClaimVMPL        = "x-ms-sevsnpvm-vmpl"
	ClaimGuestSVN    = "x-ms-sevsnpvm-guestsvn"
	ClaimIDKey       = "x-ms-sevsnpvm-idkeydigest"
	ClaimAuthorKey   = "x-ms-sevsnpvm-authorkeydigest"
	ClaimReportData  = "x-ms-sevsnpvm-reportdata"
	ClaimMigration   = "x-ms-sevsnpvm-migration-allowed"

	ClaimMRTD       = "tdx_mrtd"
	ClaimMRConfigID = "tdx_mrconfigid"
	ClaimTDXDebug   = "tdx_td_attributes_debug"
)

// teeClaims are the claims of a TEE. Microsoft, "Claims in Azure Attestation" and "Azure Attestation EAT profile for
// TDX".
var teeClaims = []string{
	ClaimType, ClaimCompliance, "x-ms-runtime", "x-ms-inittime", "x-ms-ver", "x-ms-policy-hash",
	ClaimHostData, ClaimMeasurement, ClaimDebuggable, ClaimVMPL, ClaimGuestSVN, ClaimIDKey, ClaimAuthorKey,
	ClaimReportData, ClaimMigration, "x-ms-sevsnpvm-reportid", "x-ms-sevsnpvm-smt-allowed", "x-ms-sevsnpvm-familyId",
	"x-ms-sevsnpvm-imageId", "x-ms-sevsnpvm-bootloader-svn", "x-ms-sevsnpvm-tee-svn", "x-ms-sevsnpvm-snpfw-svn",
	"x-ms-sevsnpvm-microcode-svn", "x-ms-sevsnpvm-fmc-svn",
	ClaimMRTD, ClaimMRConfigID, ClaimTDXDebug, "tdx_mrowner", "tdx_mrownerconfig", "tdx_mrseam", "tdx_mrsignerseam",
	"tdx_report_data", "tdx_rtmr0", "tdx_rtmr1", "tdx_rtmr2", "tdx_rtmr3", "tdx_seam_attributes", "tdx_seamsvn",
	"tdx_td_attributes", "tdx_td_attributes_key_locker", "tdx_td_attributes_perfmon",
	"tdx_td_attributes_protection_keys", "tdx_td_attributes_septve_disable", "tdx_tee_tcb_svn", "tdx_xfam", "dbgstat",
	"attester_tcb_status",
}

// outerClaims stand at the top level of every token.
var outerClaims = []string{
	"iss", "iat", "exp", "nbf", "jti", "nonce", "intuse", "eat_profile", "ver", "secureboot", Nested,
}

// changing are claims that no two tokens share: equals on one is never satisfied again.
var changing = []string{
	"iat", "exp", "nbf", "jti", "nonce", "x-ms-sevsnpvm-reportid", ClaimReportData, "tdx_report_data",
	"x-ms-runtime.client-payload.nonce", "x-ms-runtime.vm-configuration.current-time",
}

// Code names a finding.
type Code string

// Codes of findings.
const (
	NoHostData     Code = "no-hostdata"
	NoMeasurement  Code = "no-measurement"
	NoDebugCheck   Code = "debuggable"
	NoType         Code = "attestation-type"
	PlainAuthority Code = "authority"
	UnknownClaim   Code = "unknown-claim"
	ChangingClaim  Code = "changing-claim"
	RareOperator   Code = "operator"
	UpperCase      Code = "upper-case"
	NoRecovery     Code = "immutable"
	BearerOnly     Code = "bearer-only"
)

// Finding is something that makes a policy weak or useless.
type Finding struct {
	Code Code `json:"code"`
	// Path is the place of the authority or condition.
	Path string `json:"path"`
	Text string `json:"text"`
}

// String returns the finding as a line.
func (f Finding) String() string { return fmt.Sprintf("%s: %s [%s]", f.Path, f.Text, f.Code) }

// Lint lists the faults that make a policy weak or useless. immutable says that the key's policy cannot be changed.
func Lint(p *Policy, immutable bool) []Finding {
	var out []Finding
	for i, a := range p.Authorities {
		path := fmt.Sprintf("anyOf[%d]", i)
		if u, err := url.Parse(a.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil ||
			u.RawQuery != "" || u.Fragment != "" {
			out = append(out, Finding{PlainAuthority, path, fmt.Sprintf(
				"the authority %q is not https://HOST: anybody on the network could issue its tokens", a.URL)})
		}
		for _, way := range ways(a.Need) {
			out = append(out, weak(path, way)...)
		}
		out = append(out, conditions(path, a.Need)...)
	}
	if immutable && len(endorsed(p)) == 0 {
		out = append(out, Finding{NoRecovery, "policy", "the policy is immutable, and every way to the key names digests " +
			"of one build: after the next update of the guest nobody gets the key again; keep a copy of the key, or release " +
			"by " + ClaimCompliance + " and " + ClaimGuestSVN})
	}
	return unique(out)
}

func unique(in []Finding) []Finding {
	var out []Finding
	for _, f := range in {
		if !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// maxWays bounds the number of ways that are looked at. A policy with more is judged by the first ones.
const maxWays = 256

// ways are the sets of comparisons of which each suffices, when all of it holds.
func ways(c Condition) [][]Condition {
	switch {
	case c.Any != nil:
		var out [][]Condition
		for _, b := range c.Any {
			out = append(out, ways(b)...)
		}
		return out[:min(len(out), maxWays)]
	case c.All != nil:
		out := [][]Condition{nil}
		for _, b := range c.All {
			var next [][]Condition
			for _, have := range out {
				for _, more := range ways(b) {
					next = append(next, slices.Concat(have, more))
				}
				if len(next) > maxWays {
					break
				}
			}
			out = next
		}
		return out[:min(len(out), maxWays)]
	}
	return [][]Condition{{c}}
}

// endorsed are the ways to a key that survive an update of the guest.
func endorsed(p *Policy) [][]Condition {
	var out [][]Condition
	for _, a := range p.Authorities {
		for _, way := range ways(a.Need) {
			if !pins(way, ClaimMeasurement, ClaimMRTD) {
				out = append(out, way)
			}
		}
	}
	return out
}

// pins tells whether a way demands one value of one of the claims.
func pins(way []Condition, claims ...string) bool {
	return slices.ContainsFunc(way, func(c Condition) bool {
		return c.Operator == Equals && slices.Contains(claims, base(c.Claim))
	})
}

// base is a claim's name without the object of a confidential VM's TEE.
func base(claim string) string { return strings.TrimPrefix(claim, Nested+".") }

// weak lists the properties of a VM that one alternative of the policy does not check.
func weak(path string, way []Condition) []Finding {
	var out []Finding
	add := func(c Code, text string) { out = append(out, Finding{c, path, text}) }
	has := func(claim string, holds func(Condition) bool) bool {
		return slices.ContainsFunc(way, func(c Condition) bool { return base(c.Claim) == claim && holds(c) })
	}
	least := func(c Condition) bool { return c.Operator == Greater || c.Operator == GreaterOrEquals }
	isFalse := func(c Condition) bool {
		v, ok := truth(c.Value)
		return ok && (c.Operator == Equals && !v || c.Operator == NotEquals && v)
	}
	if !pins(way, ClaimType, ClaimHostData, ClaimMeasurement, ClaimMRConfigID, ClaimMRTD, ClaimCompliance) {
		add(BearerOnly, "no claim of a TEE is asked for: the bearer token, which the host sees, is all that protects the key")
	}
	if !pins(way, ClaimHostData, ClaimMRConfigID) {
		add(NoHostData, "no claim binds the pod's initdata ("+ClaimHostData+" or "+ClaimMRConfigID+
			"): a pod with any policy gets the key")
	}
	complies := pins(way, ClaimCompliance)
	versioned := has(ClaimGuestSVN, func(c Condition) bool { return c.Operator == Equals || least(c) })
	if !pins(way, ClaimMeasurement, ClaimMRTD) && !(complies && versioned) {
		add(NoMeasurement, "neither the launch digest ("+ClaimMeasurement+" or "+ClaimMRTD+") nor "+ClaimCompliance+
			" with a lowest "+ClaimGuestSVN+" is asked for: any guest, also an old one, gets the key")
	}
	if !has(ClaimDebuggable, isFalse) && !has(ClaimTDXDebug, isFalse) {
		add(NoDebugCheck, "a guest whose memory the host can read is not excluded: ask for "+ClaimDebuggable+" or "+
			ClaimTDXDebug+" false")
	}
	if !pins(way, ClaimType) {
		add(NoType, "no "+ClaimType+" is asked for: tokens of another kind of VM may have claims of the same names")
	}
	return out
}

// conditions lists comparisons that cannot mean what they say.
func conditions(path string, c Condition) []Finding {
	var out []Finding
	for i, b := range c.Any {
		out = append(out, conditions(fmt.Sprintf("%s.anyOf[%d]", path, i), b)...)
	}
	for i, b := range c.All {
		out = append(out, conditions(fmt.Sprintf("%s.allOf[%d]", path, i), b)...)
	}
	if c.Claim == "" {
		return out
	}
	add := func(code Code, format string, args ...any) {
		out = append(out, Finding{code, path, fmt.Sprintf(format, args...)})
	}
	if !known(c.Claim) {
		add(UnknownClaim, "Azure's attestation service is not known to issue the claim %s: check the spelling", c.Claim)
	}
	if c.Operator == Equals && slices.Contains(changing, base(c.Claim)) {
		add(ChangingClaim, "%s is different in each token: no token will satisfy it", c.Claim)
	}
	if c.Operator != Equals {
		add(RareOperator, "Microsoft's page says that equals is the only operator of the first iteration of the grammar: "+
			"try %s with your vault before you rely on it", c.Operator)
	}
	if s := text(c.Value); hexDigits.MatchString(s) && strings.ToLower(s) != s {
		add(UpperCase, "the digits of %s are in lower case in tokens, and here in upper case", c.Claim)
	}
	return out
}

// known tells whether a claim is one of those that are documented.
func known(claim string) bool {
	first, _, _ := strings.Cut(base(claim), ".")
	if strings.HasPrefix(claim, Nested+".") {
		return slices.Contains(teeClaims, first)
	}
	return slices.Contains(teeClaims, first) || slices.Contains(outerClaims, first) ||
		strings.HasPrefix(first, "x-ms-azurevm-") || strings.HasPrefix(first, "x-ms-policy")
}
