// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// runWith runs the command with changed options.
func runWith(t *testing.T, set func(*options), args ...string) (string, error) {
	t.Helper()
	o := options{now: func() time.Time { return tdxtest.Now }}
	set(&o)
	cmd := Command()
	cmd.ResetFlags()
	o.flags(cmd.Flags())
	cmd.RunE = func(c *cobra.Command, a []string) error { return o.run(c, a[0]) }
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// td is a quote with its collateral and event log as files.
func td(t *testing.T) (set func(*options), dir string, args []string, q *tdx.Quote) {
	t.Helper()
	p := tdxtest.New(t, nil)
	area := tdxtest.EventLog(tdxtest.Event(2, ccel.EvAction, "Calling EFI Application from Boot Option"))
	log, err := ccel.Parse(area)
	if err != nil {
		t.Fatal(err)
	}
	quote := p.Quote(t, tdx.TD15, func(parts *tdxtest.Parts) {
		for i, r := range log.Replay(nil) {
			copy(parts.Body[tdxtest.RTMR0+48*i:], r)
		}
	})
	if q, err = tdx.Parse(quote); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	file := func(name string, b []byte) string {
		write(t, filepath.Join(dir, name), b)
		return filepath.Join(dir, name)
	}
	args = []string{file("quote", quote), "--event-log", file("ccel", area)}
	docs := p.Collateral(t, nil).Documents
	for _, d := range docs {
		args = append(args, "--collateral", file(d.Name, d.Data))
	}
	args = append(args, "--collateral", file("signer.pem", docs[0].Chain))
	return func(o *options) { o.tdxRoot = &p.Root.Key.PublicKey }, dir, slices.Clip(args), q
}

func TestQuoteOfTDX(t *testing.T) {
	set, dir, args, q := td(t)
	out, err := runWith(t, set, args...)
	if err != nil || strings.Count(out, "NOT CHECKED") != 3 || !strings.Contains(out, "rtmr1") ||
		!strings.Contains(out, q.Body.MRTD.String()) {
		t.Fatalf("%v\n%s", err, out)
	}
	values := map[string]string{"mrtd": q.Body.MRTD.String(), "rtmr1": q.Body.RTMR[1].String()}
	broker, err := json.Marshal(map[string]any{
		"type": "coco-reference-values", "values": []any{map[string]any{"platform": "tdx", "registers": values}},
	})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]any{
		"mr_td": []string{values["mrtd"]}, "rtmr_1": []string{values["rtmr1"]},
		"xfam": 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	trustee := `{"type":"sample","payload":"` + base64.StdEncoding.EncodeToString(payload) + `"}`
	references := filepath.Join(dir, "references")
	for _, text := range []string{string(broker), trustee} {
		write(t, references, []byte(text))
		out, err = runWith(t, set, append(args, "--reference-values", references)...)
		if err != nil || strings.Count(out, "NOT CHECKED") != 2 {
			t.Errorf("%v\n%s", err, out)
		}
		write(t, references, []byte(strings.ReplaceAll(text, values["rtmr1"], values["mrtd"])))
		if text == trustee {
			continue
		}
		if _, err = runWith(t, set, append(args, "--reference-values", references)...); exit(err) != 4 {
			t.Errorf("another RTMR1: %v", err)
		}
	}
	for name, text := range map[string]string{
		"digits": values["mrtd"], "no MRTD": `{"type":"sample","payload":"e30="}`, "type": `{"type":"x"}`,
		"base64": `{"type":"sample","payload":"?"}`,
		"short":  `{"type":"coco-reference-values","values":[{"platform":"tdx","registers":{"mrtd":"00"}}]}`,
	} {
		write(t, references, []byte(text))
		if _, err = runWith(t, set, append(args, "--reference-values", references)...); exit(err) != 1 {
			t.Errorf("reference values, %s: %v", name, err)
		}
	}
}

func TestQuoteOfTDXIsRefusedByClass(t *testing.T) {
	set, dir, args, _ := td(t)
	write(t, filepath.Join(dir, "other"), tdxtest.EventLog())
	write(t, filepath.Join(dir, "short"), []byte{4, 0, 2, 0, 0x81, 0, 0, 0})
	for _, tc := range []struct {
		name string
		args []string
		want int
	}{
		{"another flag's type", append(args, "--min-tcb", "Milan:snp=1"), 1},
		{"no status", append(args, "--tcb-status", "Fine"), 1},
		{"a status that is never accepted", append(args, "--tcb-status", "Revoked"), 1},
		{"a status beside", append(args, "--tcb-status", "OutOfDate,SWHardeningNeeded"), 0},
		{"high evaluation", append(args, "--min-evaluation", "19"), 5},
		{"advisory that does not apply", append(args, "--refuse-advisory", "INTEL-SA-00009"), 0},
		{"another log", append(args, "--event-log", filepath.Join(dir, "other")), 3},
		{"no collateral", args[:3], 6},
		{"short quote", []string{filepath.Join(dir, "short")}, 2},
		{"strict", append(args, "--strict"), 1},
		{"late", append(args, "--at", "2027-06-01T00:00:00Z"), 6},
		{"late and accepted", append(args, "--at", "2027-06-01T00:00:00Z", "--allow-expired"), 0},
	} {
		if out, err := runWith(t, set, tc.args...); exit(err) != tc.want {
			t.Errorf("%s: status %d, want %d: %v\n%s", tc.name, exit(err), tc.want, err, out)
		}
	}
	if _, err := runWith(t, func(*options) {}, args...); exit(err) != 3 {
		t.Errorf("Intel's root: %v", err)
	}
}

func TestQuoteOfATPM(t *testing.T) {
	p := tpmtest.NewRSA(t)
	p.Extend(4, bytes.Repeat([]byte{1}, 32))
	e := p.Quote(t, []byte("nonce"), nil)
	dir := t.TempDir()
	var pcrs []string
	for i := range 24 {
		pcrs = append(pcrs, hex.EncodeToString(e.PCRs[i]))
	}
	cert, ca := p.Certificate(t, nil)
	text, err := json.Marshal(map[string]any{
		"ak_public": e.Key, "ak_certificates": cert,
		"tpm_quote": map[string]any{"signature": e.Signature, "message": e.Report, "pcrs": pcrs},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "evidence"), text)
	write(t, filepath.Join(dir, "ca"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}))
	der, err := x509.MarshalPKIXPublicKey(p.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	all := []string{"--pcr-selection", "sha256:9,8,7,6,5,4,3,2,1,0", "--reference-values"}
	rv := func(name, text string) []string {
		write(t, filepath.Join(dir, name), []byte(text))
		return append(slices.Clone(all), filepath.Join(dir, name))
	}
	ours := `{"type":"coco-reference-values","values":[{"platform":"vtpm","registers":{"pcr04":"%s"}},{"platform":"tdx",` +
		`"registers":{"mrtd":"00"}}]}`
	rvps := `{"type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(`{"tpm_pcr04":["`+pcrs[5]+`","`+
		pcrs[4]+`"],"snp_launch_measurement":["00"]}`)) + `"}`
	for _, tc := range []struct {
		name      string
		args      []string
		want      int
		undecided int
	}{
		{"reference values of ours", rv("ours", fmt.Sprintf(ours, pcrs[4])), 0, 3},
		{"reference values of Trustee's form", rv("rvps", rvps), 0, 3},
		{"other reference values", rv("other", fmt.Sprintf(ours, pcrs[5])), 4, 0},
		{"a quote of less than all PCRs", []string{"--reference-values", filepath.Join(dir, "ours")}, 4, 0},
		{"reference values without PCRs", rv("none", `{"type":"coco-reference-values"}`), 1, 0},
		{"reference values of another kind", rv("kind", `{"type":"x"}`), 1, 0},
		{"a PCR that no TPM has", rv("24", strings.ReplaceAll(fmt.Sprintf(ours, pcrs[4]), "pcr04", "pcr24")), 1, 0},
		{"a value that is too short", rv("short", fmt.Sprintf(ours, "00")), 1, 0},
		{"nothing is said", nil, 0, 5},
		{"as asked", []string{"--pcr-selection", "sha256:9,8,7,6,5,4,3,2,1,0", "--pcr", "4=" + pcrs[4]}, 0, 3},
		{"by the CA", []string{"--ak-ca", filepath.Join(dir, "ca")}, 0, 4},
		{"by the hash", []string{"--ak-hash", hex.EncodeToString(sum[:])}, 0, 4},
		{"another PCR", []string{"--pcr", "4=" + pcrs[5]}, 4, 0},
		{"another selection", []string{"--pcr-selection", "sha256:4"}, 4, 0},
		{"another bank", []string{"--pcr-selection", "sha1:4"}, 1, 0},
		{"another key", []string{"--ak-hash", strings.Repeat("00", 32)}, 3, 0},
		{"short hash", []string{"--ak-hash", "00"}, 1, 0},
		{"PCR 24", []string{"--pcr", "24=00"}, 1, 0},
		{"no CA", []string{"--ak-ca", filepath.Join(dir, "evidence")}, 1, 0},
		{"another type", []string{"--tcb-status", "OutOfDate"}, 1, 0},
		{"debug", []string{"--allow-debug"}, 1, 0},
		{"launch digests", []string{"--reference-values", filepath.Join(dir, "evidence")}, 1, 0},
		{"strict", []string{"--strict"}, 1, 0},
	} {
		out, err := runWith(t, func(*options) {}, append([]string{filepath.Join(dir, "evidence")}, tc.args...)...)
		if exit(err) != tc.want || strings.Count(out, "NOT CHECKED") != tc.undecided {
			t.Errorf("%s: status %d, want %d: %v\n%s", tc.name, exit(err), tc.want, err, out)
		}
	}
}

// The type of evidence is told by its bytes.
func TestTypesAreTold(t *testing.T) {
	quote := tdxtest.New(t, nil).Quote(t, 0, nil)
	for name, tc := range map[string]struct {
		b    []byte
		want attestation.Type
	}{
		"quote": {quote, attestation.TDX}, "digits": {[]byte(hex.EncodeToString(quote) + "\n"), attestation.TDX},
		"JSON":   {[]byte(`{"quote":"` + base64.StdEncoding.EncodeToString(quote) + `"}`), attestation.TDX},
		"TPM":    {[]byte(`{"tpm_quote":{}}`), attestation.TPM},
		"report": {append([]byte{3}, make([]byte, 1183)...), attestation.SNP},
	} {
		if e, err := parse(tc.b); err != nil || e.Type != tc.want {
			t.Errorf("%s: %s, %v, want %s", name, e.Type, err, tc.want)
		}
	}
}
