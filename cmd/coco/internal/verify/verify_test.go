// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/internal/initdata"
)

// run runs the command with the roots of made evidence.
func run(t *testing.T, m *snptest.Made, service doer, args ...string) (string, error) {
	t.Helper()
	o := options{now: func() time.Time { return snptest.Now }}
	o.verifier = &m.Verifier
	if service != nil {
		o.service = service
	}
	cmd := Command()
	cmd.ResetFlags()
	o.flags(cmd.Flags())
	cmd.RunE = func(cmd2 *cobra.Command, a []string) error { return o.run(cmd2, a[0]) }
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error) { return d(r) }

// files writes evidence and its collateral.
func files(t *testing.T, m *snptest.Made) (dir string, args []string) {
	t.Helper()
	dir = t.TempDir()
	for name, b := range map[string][]byte{
		"report": m.Evidence.Report, "leaf": m.Leaf, "middle": m.Middle, "list": m.List,
	} {
		write(t, filepath.Join(dir, name), b)
	}
	return dir, []string{
		filepath.Join(dir, "report"), "--collateral", filepath.Join(dir, "leaf"),
		"--collateral", filepath.Join(dir, "middle"), "--collateral", filepath.Join(dir, "list"),
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func exit(err error) int {
	var r *Refusal
	switch {
	case errors.As(err, &r):
		return r.ExitCode()
	case err != nil:
		return 1
	}
	return 0
}

const document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

// decided is evidence with flags that leave nothing unchecked.
func decided(t *testing.T) (*snptest.Made, []string) {
	t.Helper()
	doc, err := initdata.FromText([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	m := snptest.Make(t, snptest.Spec{Edit: func(b []byte) { copy(b[0xC0:0xE0], doc.Digest()) }})
	dir, args := files(t, m)
	write(t, filepath.Join(dir, "initdata.toml"), []byte(document))
	write(t, filepath.Join(dir, "digests"), []byte(hex.EncodeToString(m.Evidence.Report[0x90:0xC0])+"\n"))
	return m, append(args, "--initdata", filepath.Join(dir, "initdata.toml"), "--reference-values",
		filepath.Join(dir, "digests"), "--report-data", hex.EncodeToString(m.Evidence.Report[0x50:0x90]),
		"--min-tcb", "milan:snp=24,microcode=219", "--strict", "--product", "Milan", "--vmpl", "0")
}

func TestEvidenceHolds(t *testing.T) {
	m, args := decided(t)
	out, err := run(t, m, nil, args...)
	if err != nil || strings.Contains(out, "NOT CHECKED") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"ELSE", "signature", "certificate.hwid", "at least 24", "one of 1", "host_data"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	out, err = run(t, m, nil, append(args, "--json")...)
	var got result
	err = errors.Join(err, json.Unmarshal([]byte(out), &got))
	if err != nil || !got.Verified || !got.At.Equal(snptest.Now) {
		t.Errorf("--json: %v\n%s", err, out)
	}
	if got.Claims.Details["product"] != "Milan" || len(got.Claims.Checks) < 20 {
		t.Errorf("claims: %+v", got.Claims)
	}
}

func TestWhatIsNotCheckedIsTold(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	_, args := files(t, m)
	out, err := run(t, m, nil, args[:5]...) // without the list
	if err != nil || strings.Count(out, "NOT CHECKED") != 5 {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run(t, m, nil, append(args, "--strict")...); exit(err) != 1 {
		t.Errorf("--strict without values: %v", err)
	}
}

func TestExitStatusTellsTheClass(t *testing.T) {
	m, args := decided(t)
	dir := filepath.Dir(args[0])
	changed := bytes.Clone(m.Evidence.Report)
	changed[0x90] ^= 1
	write(t, filepath.Join(dir, "changed"), changed)
	write(t, filepath.Join(dir, "short"), []byte("x"))
	other := func(report string) []string { return append([]string{filepath.Join(dir, report)}, args[1:]...) }
	for _, tc := range []struct {
		name string
		args []string
		want int
		code attestation.Code
	}{
		{"no file", other("absent"), 1, ""},
		{"unusable time", append(args, "--at", "noon"), 1, ""},
		{"unusable level", append(args, "--min-tcb", "Milan:snp=256"), 1, ""},
		{"unknown product", append(args, "--product", "Rome"), 1, ""},
		{"unknown level of privilege", append(args, "--vmpl", "4"), 1, ""},
		{"unusable report data", append(args, "--report-data", "x"), 1, ""},
		{"not a report", other("short"), 2, attestation.CodeMalformed},
		{"changed report", other("changed"), 3, attestation.CodeSignature},
		{"other report data", append(args, "--report-data", "00"), 4, attestation.CodeReportData},
		{"old firmware", append(args, "--min-tcb", "Milan:snp=25"), 5, attestation.CodeOutdated},
		{"later", append(args, "--at", "2036-01-01T00:00:00Z"), 6, attestation.CodeCollateralExpired},
		{"no certificate", append([]string{args[0]}, args[7:]...), 6, attestation.CodeCollateralMissing},
	} {
		out, err := run(t, m, nil, append(tc.args, "--json")...)
		f, _ := attestation.FailureOf(err)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: told twice: %v", tc.name, err)
		}
		if exit(err) != tc.want || tc.code != "" && (f == nil || f.Code != tc.code) {
			t.Errorf("%s: %d, %v; want %d, %s", tc.name, exit(err), err, tc.want, tc.code)
		}
		if tc.code != "" && !strings.Contains(out, "\"code\": \""+string(tc.code)+"\"") {
			t.Errorf("%s: --json lacks the code:\n%s", tc.name, out)
		}
	}
	if _, err := run(t, m, nil, append(args, "--at", "2036-01-01T00:00:00Z", "--allow-expired")...); err != nil {
		t.Errorf("--allow-expired: %v", err)
	}
}

// The vendor is asked once for each document; the directory serves the next run, without the vendor.
func TestCollateralIsFetchedAndKept(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	dir, args := files(t, m)
	cache := filepath.Join(dir, "cache")
	if err := os.Mkdir(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	var asked []string
	vendor := func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.Path)
		b := m.Leaf
		if strings.HasSuffix(r.URL.Path, "/crl") {
			b = m.List
		}
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(b))}, nil
	}
	run2 := []string{args[0], "--collateral", filepath.Join(dir, "middle"), "--collateral", cache, "--json"}
	for range 2 {
		if out, err := run(t, m, vendor, append(run2, "--fetch")...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if _, err := run(t, m, nil, run2...); err != nil || len(asked) != 2 {
		t.Errorf("offline: %v; asked %q", err, asked)
	}
	busy := func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusTooManyRequests, Status: "429", Body: http.NoBody}, nil
	}
	_, err := run(t, m, busy, args[0], "--fetch")
	if exit(err) != 6 || !strings.Contains(err.Error(), "429") {
		t.Errorf("a vendor that refuses: %v", err)
	}
}

func TestReferenceValues(t *testing.T) {
	digest := strings.Repeat("ab", 48)
	sample := "eyJzbnBfbGF1bmNoX21lYXN1cmVtZW50IjpbIg==" // {"snp_launch_measurement":["
	for name, tc := range map[string]struct {
		text string
		ok   bool
	}{
		"lines": {digest + "\n" + digest + "\n", true},
		"broker": {`{"type":"coco-reference-values","version":1,"values":[{"platform":"snp","measurement":"` + digest +
			`"},{"platform":"tdx","registers":{}}]}`, true},
		"none of SNP":  {`{"type":"coco-reference-values","values":[{"platform":"tdx"}]}`, false},
		"cut payload":  {`{"type":"sample","payload":"` + sample + `"}`, false},
		"unknown type": {`{"type":"x"}`, false},
		"short digest": {"abcd", false},
		"empty":        {"", false},
	} {
		path := filepath.Join(t.TempDir(), "rv")
		write(t, path, []byte(tc.text))
		in := inputs{references: path}
		got, err := in.measurements()
		if (err == nil) != tc.ok || tc.ok && hex.EncodeToString(got[0]) != digest {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestKindsOfFiles(t *testing.T) {
	vcek, vlek := snptest.Make(t, snptest.Spec{}), snptest.Make(t, snptest.Spec{Key: snp.VLEK})
	for _, tc := range []struct {
		data []byte
		want attestation.Kind
	}{
		{vcek.Leaf, snp.KindVCEK},
		{vlek.Leaf, snp.KindVLEK},
		{vcek.Middle, snp.KindChain},
		{vcek.List, snp.KindCRL},
		{[]byte("x"), ""},
	} {
		if got, err := kindOf(tc.data); got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%q, %v; want %q", got, err, tc.want)
		}
	}
}
