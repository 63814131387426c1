// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nodetpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/guest"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpmca"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/swtpm"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/internal/tpm2"
)

// The test program is its own launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	os.Exit(m.Run())
}

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := CACommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	return out.String(), err
}

// pod starts a real TPM as the shim does, and returns it as a guest has it.
func pod(t *testing.T, ca string) tpm2.TPM {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Swtpm)
	p, err := launch.Start(t.Context(), launch.Options{
		Jail: &jail.Options{User: 1_900_000_078, Processes: 4096, Memory: []string{swtpm.StateDir}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	})
	socket, err := swtpm.Serve(t.Context(), p, "/usr/bin/swtpm", func(_ context.Context, control *os.File) error {
		return certify(ca, control)
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = socket.Close() }) // a test's
	init := []byte{0, 0, 0, 2, 0, 0, 0, 0}                  // CMD_INIT, as QEMU sends it
	if _, err := c.Write(init); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	data, err := swtpm.Commands(c.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = data.Close() }) // likewise
	out := tpm2.New(data)
	if err := out.Startup(); err != nil {
		t.Fatal(err)
	}
	return out
}

// verify verifies evidence as coco verify does for who trusts the CA in a directory.
func verify(t *testing.T, text []byte, ca string, nonce []byte, change func(*tpm.Expectations)) error {
	t.Helper()
	e, err := tpm.ParseEvidence(text)
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(ca, tpmca.CertFile))
	if err != nil {
		t.Fatal(err)
	}
	want := tpm.Expectations{Selection: &tpm.Selection{Bank: crypto.SHA256}, Roots: x509.NewCertPool()}
	want.Roots.AppendCertsFromPEM(root)
	for n := range 24 {
		want.Selection.PCRs = append(want.Selection.PCRs, n)
	}
	want.ReportData = nonce
	initdata := sha256.Sum256([]byte("initdata"))
	want.InitData = initdata[:]
	want.Registers = map[string][][]byte{"pcr09": {make([]byte, 32)}}
	if change != nil {
		change(&want)
	}
	_, err = tpm.Verify(e, attestation.Collateral{Now: time.Now()}, want)
	return err
}

// TestEvidenceLeadsToTheNodesCA goes from the making of the CA to the verification of a pod's quote.
func TestEvidenceLeadsToTheNodesCA(t *testing.T) {
	dir := t.TempDir()
	ca, other := filepath.Join(dir, "ca"), filepath.Join(dir, "other")
	if out, err := run(t, "--dir", ca, "--name", "node-7"); err != nil || out != filepath.Join(ca, "ca.crt")+"\n" {
		t.Fatalf("%q, %v", out, err)
	}
	if _, err := run(t, "--dir", other); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "--dir", ca); err == nil {
		t.Error("a CA was replaced")
	}
	if st, err := os.Stat(filepath.Join(ca, "ca.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the CA's key: %v, %v", st, err)
	}
	device := pod(t, ca)
	if err := device.Extend(8, sha256.Sum256([]byte("initdata"))); err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{7}, 48)
	nonce := digest[:32] // which is what a quote takes of it
	attester := &guest.TPM{Open: func() (tpm2.TPM, func() error, error) {
		return device, func() error { return nil }, nil
	}}
	var text []byte
	for range 4 { // keys are given back: a TPM has room for three
		var err error
		if text, err = attester.Evidence(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
	}
	if err := verify(t, text, ca, nonce, nil); err != nil {
		t.Errorf("good evidence: %v", err)
	}
	for name, tc := range map[string]struct {
		ca     string
		nonce  []byte
		change func(*tpm.Expectations)
		code   attestation.Code
	}{
		"another node's CA": {other, nonce, nil, attestation.CodeKeyOrigin},
		"another nonce":     {ca, nonce[1:], nil, attestation.CodeReportData},
		"other initdata": {
			ca, nonce, func(e *tpm.Expectations) { e.InitData = make([]byte, 32) }, attestation.CodeInitData,
		},
		"another command line": {ca, nonce, func(e *tpm.Expectations) {
			e.Registers = map[string][][]byte{"pcr09": {nonce[:32]}}
		}, attestation.CodeRegister},
	} {
		err := verify(t, text, tc.ca, tc.nonce, tc.change)
		if f, ok := attestation.FailureOf(err); !ok || f.Code != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
	checkQuote(t, text, nonce)
}

// checkQuote has tpm2-tools judge the quote.
func checkQuote(t *testing.T, text, nonce []byte) {
	t.Helper()
	testvm.Need(t, testvm.TPM2Tools)
	var e struct {
		Key   string `json:"ak_public"`
		Quote struct {
			Signature, Message string
			PCRs               []string
		} `json:"tpm_quote"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b64 := range map[string]string{"key": e.Key, "signature": e.Quote.Signature, "message": e.Quote.Message} {
		b, err := base64.StdEncoding.DecodeString(b64)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(nonce string) error {
		out, err := exec.CommandContext(t.Context(), "tpm2_checkquote", "-u", filepath.Join(dir, "key"), "-g", "sha256",
			"-s", filepath.Join(dir, "signature"), "-m", filepath.Join(dir, "message"), "-q", nonce).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := check(fmt.Sprintf("%x", nonce)); err != nil {
		t.Errorf("tpm2_checkquote: %v", err)
	}
	if err := check("00"); err == nil {
		t.Error("tpm2_checkquote accepts another nonce")
	}
}

func TestNoCANoCertificate(t *testing.T) {
	dir := t.TempDir()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := certify(dir, null); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("without a CA: %v", err)
	}
	if _, err := run(t, "--dir", filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "--dir", filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := certify(filepath.Join(dir, "a"), null); err == nil || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("without a TPM: %v", err)
	}
	if err := os.Rename(filepath.Join(dir, "b", "ca.key"), filepath.Join(dir, "a", "ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := certify(filepath.Join(dir, "a"), null); err == nil || !strings.Contains(err.Error(), "is not the key") {
		t.Errorf("with the key of another CA: %v", err)
	}
}
