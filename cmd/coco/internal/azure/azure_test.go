// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/internal/initdata"
)

// run runs coco azure. The status is that of the process.
func run(t *testing.T, args ...string) (out string, status int, err error) {
	t.Helper()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var b bytes.Buffer
	cmd.SetOut(&b)
	cmd.SetErr(&b)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	var f cli.Failure
	switch {
	case errors.As(err, &f):
		status = f.Code
	case err != nil:
		status = 1
	}
	return b.String(), status, err
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.coco\" = \"x\"\n"

// launchFile is what coco measure --json prints for a pod.
func launchFile(t *testing.T, hostData string) string {
	t.Helper()
	return file(t, "launch.json", `{"kind":"Pod","name":"pay","version":1,"platform":"snp","algorithm":"sha384","digest":"`+
		strings.Repeat("ab", 48)+`","host_data":"`+hostData+`","policy":"0x30000"}`)
}

func hostData(t *testing.T) string {
	t.Helper()
	d, err := initdata.FromText([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(d.Digest())
}

func TestAPolicyFromItsLaunchToItsToken(t *testing.T) {
	host := hostData(t)
	launch, doc := launchFile(t, host), file(t, "initdata.toml", document)
	out, _, err := run(t, "policy", "gen", "--authority", "https://maa.example", "--launch", launch, "--initdata", doc)
	if err != nil {
		t.Fatal(err)
	}
	policy := file(t, "policy.json", out)
	if out, status, err := run(t, "policy", "lint", policy); err != nil || out != "" || status != 0 {
		t.Errorf("lint: %s %v", out, err)
	}
	// The launch decides all but the privilege level.
	out, status, _ := run(t, "policy", "check", policy, "--launch", launch)
	if status != 6 || strings.Count(out, "\nunknown ") != 3 || !strings.Contains(out, "x-ms-sevsnpvm-vmpl equals 0") {
		t.Errorf("check --launch: %d\n%s", status, out)
	}
	claims := map[string]any{
		"iss": "https://maa.example", "x-ms-attestation-type": "sevsnpvm", "x-ms-sevsnpvm-hostdata": host,
		"x-ms-sevsnpvm-launchmeasurement": strings.Repeat("ab", 48), "x-ms-sevsnpvm-is-debuggable": false,
		"x-ms-sevsnpvm-vmpl": 0,
	}
	token := func() string {
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		return file(t, "token.jwt", "e30."+base64.RawURLEncoding.EncodeToString(b)+".AA\n")
	}
	if out, status, _ := run(t, "policy", "check", policy, "--token", token()); status != 0 {
		t.Errorf("check --token: %d\n%s", status, out)
	}
	claims["x-ms-sevsnpvm-is-debuggable"] = true
	out, status, _ = run(t, "policy", "check", policy, "--token", token(), "--json")
	var got struct {
		Verdict string
		Results []struct {
			Below []struct {
				Below []struct{ Verdict, Condition, By string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 4 || got.Verdict != "no" {
		t.Fatalf("check --json: %d %v\n%s", status, err, out)
	}
	for _, c := range got.Results[0].Below[0].Below {
		if want := !strings.Contains(c.Condition, "debuggable"); want != (c.Verdict == "yes") {
			t.Errorf("%+v", c)
		}
	}
}

func TestALaunchOfOtherInitdataIsRefused(t *testing.T) {
	doc := file(t, "initdata.toml", document)
	other := launchFile(t, strings.Repeat("11", 32))
	_, _, err := run(t, "policy", "gen", "--authority", "https://maa.example", "--launch", other, "--initdata", doc)
	if err == nil || !strings.Contains(err.Error(), "bound to the initdata") {
		t.Errorf("gen: %v", err)
	}
	// A launch that was measured without initdata takes the document's digest.
	none := launchFile(t, strings.Repeat("00", 32))
	out, _, err := run(t, "policy", "gen", "--authority", "https://maa.example", "--launch", none, "--initdata", doc)
	if err != nil || !strings.Contains(out, hostData(t)) {
		t.Errorf("gen: %v\n%s", err, out)
	}
	if _, _, err := run(t, "policy", "gen", "--authority", "https://maa.example", "--launch", none); err == nil {
		t.Error("a policy for a pod without initdata was made")
	}
}

func TestTheEnvelopeOfAKeyIsRead(t *testing.T) {
	launch := launchFile(t, strings.Repeat("11", 32))
	out, _, err := run(t, "policy", "gen", "--authority", "https://maa.example", "--launch", launch, "--envelope",
		"--immutable")
	_, envelope, _ := strings.Cut(out, "\n") // after the warning
	if err != nil || !strings.Contains(out, "[immutable]") {
		t.Fatalf("gen --immutable: %v\n%s", err, out)
	}
	for _, text := range []string{
		envelope, `{"key":{"kid":"k"},"release_policy":` + envelope + `}`,
		`{"releasePolicy":` + strings.Replace(envelope, `"data"`, `"encodedPolicy"`, 1) + `}`,
	} {
		out, status, _ := run(t, "policy", "lint", file(t, "key.json", text))
		if status != 4 || !strings.HasPrefix(out, "policy: the policy is immutable") {
			t.Errorf("lint: %d %s", status, out)
		}
	}
}

func TestWrongUseIsRefused(t *testing.T) {
	launch := launchFile(t, strings.Repeat("11", 32))
	empty := file(t, "empty", "{}")
	for _, args := range [][]string{
		{"gen"},
		{"gen", "--launch", launch},
		{"gen", "--launch", empty, "--authority", "https://maa.example"},
		{"gen", "--launch", launch, "--authority", "https://maa.example", "--immutable"},
		{"gen", "--launch", launch, "--authority", "https://maa.example", "--min-svn", "3"},
		{"check", empty},
		{"check", empty, "--launch", launch},
		{"check", empty, "--launch", launch, "--token", empty},
		{"lint", empty},
		{"lint", filepath.Join(t.TempDir(), "absent")},
	} {
		if out, status, err := run(t, append([]string{"policy"}, args...)...); status != 1 {
			t.Errorf("coco azure policy %q = %s, %v", args, out, err)
		}
	}
}
