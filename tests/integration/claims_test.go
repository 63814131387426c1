// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/trust/workload"
)

// showClaims is a command that asks its guest for all that the workload API has, and for a secret that its policy does
// not open. Each answer is a line.
var showClaims = []string{
	"sh", "-c", `id -u; for path in /info '/aa/evidence?runtime_data=hello' '/aa/token?token_type=kbs' ` +
		`/cdh/resource/default/db/user /cdh/resource/default/db/password; do ` +
		`wget -qO- "http://127.0.0.1:8006$path" 2>&1; echo; done`,
}

// forbidden is how busybox tells of an answer with 403.
const forbidden = "wget: server returned error: HTTP/1.1 403 Forbidden"

// TestAnUnprivilegedContainerShowsItsClaims: on platform vtpm a container without privileges gets evidence and a token,
// with no switch that is insecure. The evidence is verified here, for the container's name and its challenge, against
// what was measured beforehand.
func TestAnUnprivilegedContainerShowsItsClaims(t *testing.T) {
	testvm.Need(t, testvm.Swtpm, testvm.OVMF)
	d := daemon(t, primary)
	noLeaks(t)
	p, netns := networkPolicy(t, d, showClaims...), podNetwork(t)
	p.Pod.WorkloadPort = 8006
	p.Containers[0].Process.User = policy.User{UID: 65534, GID: 65534, Groups: []uint32{65534}}
	p.Containers[0].Workload = policy.Workload{
		Resources: []string{"kbs:///default/db/user"},
		Calls:     []string{policy.CallInfo, policy.CallEvidence, policy.CallToken},
	}
	ca := filepath.Join(t.TempDir(), "ca")
	coco(t, "node", "tpm-ca", "--dir", ca)
	b := startBroker(t, "--tpm-ca", filepath.Join(ca, "ca.crt"))
	text, digest := b.initdata(t, p, "")
	config := vtpmConfigBy(t, text, ca)
	values := filepath.Join(t.TempDir(), "launch.json")
	write(t, values, coco(t, "measure", "vtpm", "--config", config, "--reference-values", "broker"))
	b.do(t, "reference", "add", values)
	b.trusts(t, map[string]any{"init_data": []string{digest}, "tpm_pcr00_by_node": true})

	r := runFlags(t, d, netns, config, []string{"--user", "65534:65534"}, showClaims...)
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	if r.Code != 0 || len(lines) != 6 {
		t.Fatalf("%+v", r)
	}
	if lines[0] != "65534" || !strings.Contains(lines[1], `"tee":"tpm"`) || lines[4] != "alice" || lines[5] != forbidden {
		t.Errorf("the container sees %q", lines)
	}
	t.Logf("user %s of the container asks /info:\n%s", lines[0], lines[1])
	file := filepath.Join(t.TempDir(), "evidence.json")
	write(t, file, lines[2])
	for name, code := range map[string]int{"main": 0, "proxy": 4} {
		bound := workload.ReportData(name, []byte("hello"))
		out, got := verifyPCRs(t, file, config, "--initdata", filepath.Join(filepath.Dir(config), "initdata.toml"),
			"--ak-ca", filepath.Join(ca, "ca.crt"), "--report-data", hex.EncodeToString(bound[:32]))
		if got != code {
			t.Errorf("evidence of main, as that of %s, is verified with %d, want %d:\n%s", name, got, code, out)
		}
		if code == 0 {
			t.Logf("its evidence for the challenge \"hello\", verified against coco measure vtpm:\n%s", out)
		}
	}
	t.Logf("its token says:\n%s", tokenClaims(t, lines[3]))
	t.Logf("the policy opens one secret of the broker: %s\nand not the other: %s", lines[4], lines[5])
}

// vtpmConfigBy is a configuration of platform vtpm with initdata and a node's CA.
func vtpmConfigBy(t *testing.T, initdata, ca string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "initdata.toml"), initdata)
	file := filepath.Join(dir, "config.toml")
	write(t, file, fmt.Sprintf("[hypervisor]\nplatform = \"vtpm\"\nboot_timeout = \"3m\"\n"+
		"firmware = \"/usr/share/ovmf/OVMF.fd\"\ninitdata = %q\n[vtpm]\nca = %q\n",
		filepath.Join(dir, "initdata.toml"), ca))
	return file
}

// verifyPCRs runs coco verify on evidence of a TPM with the PCRs that coco measure vtpm predicts.
func verifyPCRs(t *testing.T, evidence, config string, flags ...string) (out string, code int) {
	t.Helper()
	args := append([]string{"verify", evidence}, flags...)
	for line := range strings.Lines(coco(t, "measure", "vtpm", "--config", config)) {
		if number, _, ok := strings.Cut(strings.TrimSpace(line), "="); ok && len(number) == 1 {
			args = append(args, "--pcr", strings.TrimSpace(line))
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), args...)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// tokenClaims is the content of the API's token that people read, which must be for a TPM and have no key beside it.
func tokenClaims(t *testing.T, answer string) string {
	t.Helper()
	var token struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair"`
	}
	if err := json.Unmarshal([]byte(answer), &token); err != nil || token.Key != "" {
		t.Fatalf("the token %s: %v", answer, err)
	}
	parts := strings.Split(token.Token, ".")
	if len(parts) != 3 {
		t.Fatalf("the token %s", token.Token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Issuer string `json:"iss"`
		Parts  map[string]struct {
			Status string         `json:"ear.status"`
			Vector map[string]int `json:"ear.trustworthiness-vector"`
			Notice string         `json:"ear.coco.notice"`
		} `json:"submods"`
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		t.Fatal(err)
	}
	cpu := claims.Parts["cpu0"]
	if cpu.Status != "affirming" || !strings.Contains(cpu.Notice, "integrity") {
		t.Errorf("the token says %s", text)
	}
	return fmt.Sprintf("issuer %s\nstatus %s %v\nnotice %s", claims.Issuer, cpu.Status, cpu.Vector, cpu.Notice)
}
