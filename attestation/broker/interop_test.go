// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/internal/testvm"
)

// python is an interpreter with the packages that the clients need.
func python(t *testing.T) string {
	t.Helper()
	path := testvm.Unpacked("python", "python3")
	if out, err := exec.Command(path, "-c", "import jwcrypto, jwt, rfc8785").CombinedOutput(); err != nil {
		t.Skipf("%s lacks jwcrypto, PyJWT or rfc8785 (tests/setup.sh python): %s", path, out)
	}
	return path
}

// A client of other libraries gets a secret: its digest, its view of our token and keys, its decryption.
func TestPythonClient(t *testing.T) {
	interpreter := python(t)
	w := begin(t, true, nil)
	cert := filepath.Join(t.TempDir(), "cert.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.srv.Certificate().Raw})
	if err := os.WriteFile(cert, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"P-256", "P-521", "RSA"} {
		cmd := exec.Command(interpreter, "testdata/client.py", w.srv.URL, cert, kind, password)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		in, errIn := cmd.StdinPipe()
		out, errOut := cmd.StdoutPipe()
		if errIn != nil || errOut != nil || cmd.Start() != nil {
			t.Fatal(errIn, errOut)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		digest, err := hex.DecodeString(lines.Text())
		if err != nil || len(digest) != 48 {
			_ = cmd.Wait()
			t.Fatalf("%s: digest %q: %s", kind, lines.Text(), &stderr)
		}
		report := w.made.Again(t, func(r []byte) {
			clear(r[0x50:0x90])
			copy(r[0x50:], digest)
			copy(r[0xC0:0xE0], w.doc.Digest())
		})
		given := map[string]any{"evidence": snptest.Wire(report, snp.Milan), "initdata": string(w.doc.Text)}
		if err := json.NewEncoder(in).Encode(given); err != nil {
			t.Error(err)
		}
		lines.Scan()
		got := lines.Text()
		if err := cmd.Wait(); err != nil || strings.TrimSpace(got) != "a secret" {
			t.Errorf("%s: %q, %v: %s", kind, got, err, &stderr)
		}
	}
}
