// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// row is a line of testdata/cases.json, which was written by hand.
type row struct {
	Name   string          `json:"name"`
	Policy json.RawMessage `json:"policy"`
	Issuer string          `json:"issuer"`
	Claims json.RawMessage `json:"claims"`
	Want   string          `json:"want"` // yes, no, or error: no policy
}

func rows(t *testing.T) []row {
	t.Helper()
	b, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []row
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func claims(t *testing.T, b []byte) map[string]any {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var out map[string]any
	if err := dec.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPoliciesAreJudged(t *testing.T) {
	all := rows(t)
	if len(all) < 60 {
		t.Errorf("%d cases", len(all))
	}
	for _, tc := range all {
		t.Run(tc.Name, func(t *testing.T) {
			p, err := Parse(tc.Policy)
			if (err != nil) != (tc.Want == "error") {
				t.Fatalf("Parse(%s) = %v, want %s", tc.Policy, err, tc.Want)
			}
			if err != nil {
				return
			}
			c := Claims{Values: claims(t, tc.Claims), Issuer: tc.Issuer}
			if got := p.Evaluate(c); got.Verdict.String() != tc.Want {
				t.Errorf("Evaluate(%s) = %+v, want %s", tc.Claims, got, tc.Want)
			}
			b, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Parse(b)
			if diff := cmp.Diff(p, again); err != nil || diff != "" {
				t.Errorf("Parse(Marshal()) = %v, and differs: %s", err, diff)
			}
			// What a prediction calls certain must not change when the missing claims come.
			c.Predicted, c.Issuer = true, ""
			if got := p.Evaluate(c).Verdict; tc.Issuer != "" && got == Yes && tc.Want == "no" &&
				!strings.Contains(tc.Name, "issuer") && !strings.Contains(tc.Name, "authority") {
				t.Errorf("predicted %v, want %s", got, tc.Want)
			}
		})
	}
}

func TestTextThatIsNoPolicyIsRefused(t *testing.T) {
	const twice = `{"version":"1.0.0","anyOf":[{"authority":"https://a","allOf":[{"claim":"a","equals":"x","equals":"y"}]}]}`
	deep := strings.Repeat(`{"anyOf":[`, 200)
	for _, text := range []string{
		"", "{", "[]", "null", "1", twice, `{"version":"1.0.0","anyOf":[1]} {}`, deep,
		`{"version":"1.0.0","anyOf":[{"authority":"https://a","allOf":[` + strings.Repeat(`{"allOf":[`, maxDepth) +
			`{"claim":"a","equals":1}` + strings.Repeat("]}", maxDepth) + "]}]}",
		`{"version":"1.0.0","anyOf":[{"authority":"https://a","allOf":[{"claim":"a","equals":1e99}]}]}`,
		strings.Repeat(" ", MaxPolicy+1),
	} {
		if p, err := Parse([]byte(text)); err == nil {
			t.Errorf("Parse(%.80s) = %+v, want an error", text, p)
		}
	}
}

// goodLaunch is a launch of which all is known.
func goodLaunch() Launch {
	return Launch{
		Platform: "snp", Digest: strings.Repeat("ab", 48), HostData: strings.Repeat("cd", 32), Policy: "0x30000",
		IDKeyDigest: strings.Repeat("12", 48),
	}
}

func TestAGeneratedPolicyHoldsForItsLaunchesOnly(t *testing.T) {
	svn := uint32(100)
	tdx := Launch{
		Platform: "tdx", Digest: strings.Repeat("ab", 48), HostData: strings.Repeat("cd", 48),
		Registers: map[string]string{"mrtd": strings.Repeat("ab", 48), "rtmr1": strings.Repeat("01", 48)},
	}
	other := goodLaunch()
	other.HostData = strings.Repeat("ef", 32)
	for _, tc := range []struct {
		name     string
		launches []Launch
		wanted   Wanted
		claims   map[string]any // what the service adds
	}{
		{"snp", []Launch{goodLaunch()}, Wanted{}, map[string]any{ClaimVMPL: json.Number("0")}},
		{"two pods", []Launch{other, goodLaunch()}, Wanted{}, map[string]any{ClaimVMPL: json.Number("0")}},
		{"tdx", []Launch{tdx}, Wanted{}, map[string]any{ClaimTDXDebug: false}},
		{"endorsed", []Launch{goodLaunch()}, Wanted{Compliance: "azure-signed-katacc-uvm", MinSVN: &svn}, map[string]any{
			ClaimVMPL: json.Number("0"), ClaimCompliance: "azure-signed-katacc-uvm", ClaimGuestSVN: json.Number("100"),
		}},
		{"cvm", []Launch{goodLaunch()}, Wanted{CVM: true}, map[string]any{ClaimVMPL: json.Number("0")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.wanted.Authorities = []string{"https://maa.example"}
			p, err := Generate(tc.launches, tc.wanted)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range Lint(p, false) {
				if f.Code != RareOperator {
					t.Errorf("lint: %s", f)
				}
			}
			last := tc.launches[len(tc.launches)-1]
			c, err := Predicted(last, tc.wanted.CVM)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Evaluate(c).Verdict; got != Unknown {
				t.Errorf("before the launch the verdict is %v, want unknown", got)
			}
			at := c.Values
			if tc.wanted.CVM {
				at = at[Nested].(map[string]any)
			}
			for k, v := range tc.claims {
				at[k] = v
			}
			c.Predicted, c.Issuer = false, "https://maa.example"
			if got := p.Evaluate(c); got.Verdict != Yes {
				t.Errorf("the token is refused: %+v", got)
			}
			for claim, v := range at {
				if !slices.ContainsFunc(p.Evaluate(c).Leaves(), func(r Result) bool {
					return strings.Contains(r.Condition, claim+" ")
				}) {
					continue // the policy does not ask for it
				}
				at[claim] = "other"
				if got := p.Evaluate(c); got.Verdict != No {
					t.Errorf("with another %s the verdict is %v", claim, got.Verdict)
				}
				at[claim] = v
			}
		})
	}
}

func TestPoliciesThatNobodyShouldMakeAreNotMade(t *testing.T) {
	svn := uint32(1)
	for _, tc := range []struct {
		name   string
		edit   func(*Launch, *Wanted)
		expect string
	}{
		{"a guest that can be debugged", func(l *Launch, _ *Wanted) { l.Policy = "0xb0000" }, "read the guest's memory"},
		{"no initdata", func(l *Launch, _ *Wanted) { l.HostData = "" }, "nothing would pin"},
		{"no policy of the pod", func(l *Launch, _ *Wanted) { l.HostData = strings.Repeat("00", 32) }, "no initdata"},
		{"no digest", func(l *Launch, _ *Wanted) { l.Digest = "" }, "nothing would pin"},
		{"a short digest", func(l *Launch, _ *Wanted) { l.Digest = "ab" }, "48 bytes"},
		{"no TEE", func(l *Launch, _ *Wanted) { l.Platform = "vtpm" }, "snp and tdx"},
		{"http", func(_ *Launch, w *Wanted) { w.Authorities = []string{"http://maa"} }, "not https"},
		{"no authority", func(_ *Launch, w *Wanted) { w.Authorities = nil }, "attestation service"},
		{"a version without status", func(_ *Launch, w *Wanted) { w.MinSVN = &svn }, "together"},
	} {
		l, w := goodLaunch(), Wanted{Authorities: []string{"https://maa.example"}}
		tc.edit(&l, &w)
		if _, err := Generate([]Launch{l}, w); err == nil || !strings.Contains(err.Error(), tc.expect) {
			t.Errorf("%s: Generate() = %v, want %q", tc.name, err, tc.expect)
		}
	}
}

func TestWeakPoliciesAreNamed(t *testing.T) {
	const (
		typ   = `{"claim":"x-ms-attestation-type","equals":"sevsnpvm"}`
		host  = `{"claim":"x-ms-sevsnpvm-hostdata","equals":"00"}`
		ld    = `{"claim":"x-ms-sevsnpvm-launchmeasurement","equals":"00"}`
		debug = `{"claim":"x-ms-sevsnpvm-is-debuggable","equals":"false"}`
		comp  = `{"claim":"x-ms-compliance-status","equals":"azure-compliant-uvm"}`
		svn   = `{"claim":"x-ms-sevsnpvm-guestsvn","greaterOrEquals":100}`
	)
	for _, tc := range []struct {
		name      string
		conds     []string
		authority string
		immutable bool
		want      []Code
	}{
		{"good", []string{typ, host, ld, debug}, "", false, nil},
		{"immutable, by digest", []string{typ, host, ld, debug}, "", true, []Code{NoRecovery}},
		{"immutable, endorsed", []string{typ, host, debug, comp, svn}, "", true, []Code{RareOperator}},
		{"no host data", []string{typ, ld, debug}, "", false, []Code{NoHostData}},
		{"no measurement", []string{typ, host, debug}, "", false, []Code{NoMeasurement}},
		{"compliance without version", []string{typ, host, debug, comp}, "", false, []Code{NoMeasurement}},
		{"debuggable", []string{typ, host, ld}, "", false, []Code{NoDebugCheck}},
		{"no type", []string{host, ld, debug}, "", false, []Code{NoType}},
		{"http", []string{typ, host, ld, debug}, "http://maa", false, []Code{PlainAuthority}},
		{
			"misspelt",
			[]string{typ, host, ld, debug, `{"claim":"x-ms-sevsnpvm-hostData","equals":"0"}`},
			"", false,
			[]Code{UnknownClaim},
		},
		{"a claim of the outer token below the TEE", []string{
			typ, host, ld, debug,
			`{"claim":"x-ms-isolation-tee.jti","exists":true}`,
		}, "", false, []Code{RareOperator, UnknownClaim}},
		{"changing", []string{typ, host, ld, debug, `{"claim":"jti","equals":"0"}`}, "", false, []Code{ChangingClaim}},
		{
			"upper case",
			[]string{
				typ, host, debug,
				`{"claim":"x-ms-sevsnpvm-launchmeasurement","equals":"` + strings.Repeat("AB", 48) + `"}`,
			},
			"", false,
			[]Code{UpperCase},
		},
		{
			"one of two ways is weak",
			[]string{typ, host, `{"anyOf":[` + ld + `,` + comp + `]}`, debug},
			"", false,
			[]Code{NoMeasurement},
		},
		{
			"nothing of a TEE",
			[]string{`{"claim":"iss","exists":true}`},
			"", false,
			[]Code{NoDebugCheck, NoHostData, NoMeasurement, NoType, RareOperator, BearerOnly},
		},
	} {
		if tc.authority == "" {
			tc.authority = "https://maa.example"
		}
		p, err := Parse([]byte(`{"version":"1.0.0","anyOf":[{"authority":"` + tc.authority + `","allOf":[` +
			strings.Join(tc.conds, ",") + `]}]}`))
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		var got []Code
		for _, f := range Lint(p, tc.immutable) {
			got = append(got, f.Code)
		}
		slices.Sort(got)
		slices.Sort(tc.want)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: Lint() = %v, want %v", tc.name, got, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		f.Fatal(err)
	}
	var all []row
	if err := json.Unmarshal(b, &all); err != nil {
		f.Fatal(err)
	}
	for _, r := range all {
		f.Add([]byte(r.Policy), []byte(r.Claims))
	}
	f.Fuzz(func(t *testing.T, policy, token []byte) {
		p, err := Parse(policy)
		if err != nil {
			return
		}
		Lint(p, true)
		var c Claims
		if json.Unmarshal(token, &c.Values) == nil {
			p.Evaluate(c)
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := Parse(again)
		if diff := cmp.Diff(p, q); err != nil || diff != "" {
			t.Fatalf("%s is read as another policy: %v %s", again, err, diff)
		}
	})
}
