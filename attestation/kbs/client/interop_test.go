// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/testvm"
)

// A broker of other libraries gives our client a secret: its view of our digest, and its encryption.
func TestPythonBroker(t *testing.T) {
	interpreter := testvm.Unpacked("python", "python3")
	if out, err := exec.Command(interpreter, "-c", "import jwcrypto, rfc8785").CombinedOutput(); err != nil {
		t.Skipf("%s lacks jwcrypto or rfc8785 (tests/setup.sh python): %s", interpreter, out)
	}
	ca := issue(t, nil, "ca", time.Now().Add(-time.Hour))
	leaf := issue(t, ca, "localhost", time.Now().Add(-time.Hour))
	der, err := x509.MarshalPKCS8PrivateKey(leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string]*pem.Block{
		"cert": {Type: "CERTIFICATE", Bytes: leaf.cert.Raw}, "key": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(interpreter, "testdata/broker.py", filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	for _, k := range []kbs.Kind{kbs.P256, kbs.P521, kbs.RSA} {
		c, err := New(Config{
			URL: "https://localhost:" + port[:len(port)-1], Attester: attester{}, Key: k, Timeout: 20 * time.Second,
			CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}),
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Resource(t.Context(), "a/b/c")
		c.Close()
		if err != nil || string(got) != "a secret" {
			t.Errorf("%s: %q, %v: %s", k, got, err, &stderr)
		}
	}
}
