// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Launch has the claims of a VM that are known before its launch.
type Launch struct {
	Platform string // "snp" or "tdx"
	Digest   string // the launch digest of SNP, MRTD of TDX; empty: unknown
	HostData string // HOSTDATA of SNP, MRCONFIGID of TDX; empty: unknown
	// Policy is the guest's policy of SNP, such as 0x30000; empty: unknown.
	Policy string
	// IDKeyDigest and AuthorKeyDigest are those of an ID block of SNP; empty: unknown.
	IDKeyDigest, AuthorKeyDigest string
	// Registers are RTMRs of TDX by their names: rtmr0.
	Registers map[string]string
}

// Kinds are the values of ClaimType by platform.
var kinds = map[string]string{"snp": "sevsnpvm", "tdx": "tdxvm"}

// check refuses a launch whose values do not have the platform's lengths.
func (l Launch) check() error {
	if kinds[l.Platform] == "" {
		return fmt.Errorf("platform %q: Azure attests snp and tdx", l.Platform)
	}
	hostData := 32
	if l.Platform == "tdx" {
		hostData = 48
	}
	for _, f := range []struct {
		name, digits string
		n            int
	}{
		{"launch digest", l.Digest, 48},
		{"host data", l.HostData, hostData},
		{"ID key digest", l.IDKeyDigest, 48},
		{"author key digest", l.AuthorKeyDigest, 48},
	} {
		if b, err := hex.DecodeString(f.digits); f.digits != "" && (err != nil || len(b) != f.n) {
			return fmt.Errorf("the %s is not %d bytes of %s in hexadecimal", f.name, f.n, l.Platform)
		}
	}
	return nil
}

// Predicted returns the claims that a launch decides. They stand at the top level, or below Nested for a confidential
// VM.
func Predicted(l Launch, cvm bool) (Claims, error) {
	if err := l.check(); err != nil {
		return Claims{}, err
	}
	v := map[string]any{ClaimType: kinds[l.Platform]}
	set := func(claim, value string) {
		if value != "" {
			v[claim] = value
		}
	}
	if l.Platform == "tdx" {
		set(ClaimMRTD, l.Digest)
		set(ClaimMRConfigID, l.HostData)
		for name, digits := range l.Registers {
			if name != "mrtd" {
				set("tdx_"+name, digits)
			}
		}
	} else {
		set(ClaimMeasurement, l.Digest)
		set(ClaimHostData, l.HostData)
		set(ClaimIDKey, l.IDKeyDigest)
		set(ClaimAuthorKey, l.AuthorKeyDigest)
		if err := policyClaims(v, l.Policy); err != nil {
			return Claims{}, err
		}
	}
	if cvm {
		v = map[string]any{ClaimType: "azurevm", Nested: v}
	}
	return Claims{Values: v, Predicted: true}, nil
}

// Bits of a guest's policy: SEV-SNP firmware ABI, AMD 56860, table "Guest Policy".
const (
	policySMT       = 1 << 16
	policyMigration = 1 << 18
	policyDebug     = 1 << 19
)

func policyClaims(v map[string]any, policy string) error {
	if policy == "" {
		return nil
	}
	bits, err := strconv.ParseUint(policy, 0, 64)
	if err != nil {
		return fmt.Errorf("the guest's policy %.20q is no number", policy)
	}
	v[ClaimDebuggable] = bits&policyDebug != 0
	v[ClaimMigration] = bits&policyMigration != 0
	v["x-ms-sevsnpvm-smt-allowed"] = bits&policySMT != 0
	return nil
}

// Wanted says how a policy is made.
type Wanted struct {
	// Authorities are the attestation services, as URLs.
	Authorities []string
	// Compliance and MinSVN replace the launch digest: the guest is any that the service calls compliant, from this
	// version on.
	Compliance string
	MinSVN     *uint32
	// CVM makes conditions on the claims of a confidential VM.
	CVM bool
}

// Generate makes a policy that releases a key to each of the launches, with each of the authorities.
func Generate(launches []Launch, w Wanted) (*Policy, error) {
	switch {
	case len(launches) == 0 || len(w.Authorities) == 0:
		return nil, errors.New("a policy needs a launch and an attestation service")
	case (w.Compliance == "") != (w.MinSVN == nil):
		return nil, errors.New("a compliance status and the lowest version of the guest are given together")
	}
	var each []Condition
	for i, l := range launches {
		c, err := conditionsOf(l, w)
		if err != nil {
			return nil, fmt.Errorf("launch %d: %w", i+1, err)
		}
		each = append(each, Condition{All: c})
	}
	need := each[0]
	if len(each) > 1 {
		need = Condition{Any: each}
	}
	var p Policy
	for _, url := range w.Authorities {
		p.Authorities = append(p.Authorities, Authority{url, need})
	}
	for _, f := range Lint(&p, false) {
		if f.Code == PlainAuthority {
			return nil, errors.New(f.Text)
		}
	}
	return &p, nil
}

func conditionsOf(l Launch, w Wanted) ([]Condition, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if l.HostData == "" || l.Digest == "" && w.Compliance == "" {
		return nil, errors.New("the launch digest or the digest of the initdata is not known: nothing would pin the pod")
	}
	if strings.Trim(l.HostData, "0") == "" {
		return nil, errors.New("the launch is bound to no initdata: a pod without any policy would get the key")
	}
	bits, err := strconv.ParseUint(l.Policy, 0, 64)
	if l.Policy != "" && (err != nil || bits&policyDebug != 0) {
		return nil, fmt.Errorf("the guest's policy %.20q lets the host read the guest's memory, or is no number", l.Policy)
	}
	measurement, hostData, debug := ClaimMeasurement, ClaimHostData, ClaimDebuggable
	if l.Platform == "tdx" {
		measurement, hostData, debug = ClaimMRTD, ClaimMRConfigID, ClaimTDXDebug
		if w.MinSVN != nil {
			return nil, errors.New("tokens of TDX have no version of the guest: leave out the compliance status")
		}
	}
	equals := func(claim string, v any) Condition { return Condition{Claim: claim, Operator: Equals, Value: v} }
	out := []Condition{equals(ClaimType, kinds[l.Platform]), equals(hostData, l.HostData), equals(debug, false)}
	if l.Platform == "snp" {
		out = append(out, equals(ClaimVMPL, json.Number("0")))
	}
	if w.Compliance != "" {
		svn := json.Number(strconv.FormatUint(uint64(*w.MinSVN), 10))
		out = append(out, equals(ClaimCompliance, w.Compliance),
			Condition{Claim: ClaimGuestSVN, Operator: GreaterOrEquals, Value: svn})
	} else {
		out = append(out, equals(measurement, l.Digest))
		for _, name := range []string{"rtmr0", "rtmr1", "rtmr2"} {
			if v := l.Registers[name]; v != "" && l.Platform == "tdx" {
				out = append(out, equals("tdx_"+name, v))
			}
		}
	}
	if w.CVM {
		for i := range out {
			out[i].Claim = Nested + "." + out[i].Claim
		}
	}
	return out, nil
}
