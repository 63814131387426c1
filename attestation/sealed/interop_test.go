// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
)

// python runs testdata/sealed.py.
func python(t *testing.T, mode string, in any) []byte {
	t.Helper()
	interpreter := testvm.Unpacked("python", "python3")
	if out, err := exec.Command(interpreter, "-c", "import jwcrypto, cryptography").CombinedOutput(); err != nil {
		t.Skipf("%s lacks jwcrypto (tests/setup.sh python): %s", interpreter, out)
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), interpreter, "testdata/sealed.py", mode)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sealed.py %s: %v: %s", mode, err, &stderr)
	}
	return out
}

func TestTextsThatPythonSealed(t *testing.T) {
	var v struct {
		Kid, Vault, Envelope string
		Resources, Refused   map[string]string
		Kek                  []byte
	}
	if err := json.Unmarshal(python(t, "seal", nil), &v); err != nil {
		t.Fatal(err)
	}
	o := Opener{Signers: []string{v.Kid}, Fetch: func(_ context.Context, path string) ([]byte, error) {
		if path == "default/kek/one" {
			return v.Kek, nil
		}
		return []byte(v.Resources[path]), nil
	}}
	for text, want := range map[string][2]string{
		v.Vault: {"default/db/password", "hunter2"}, v.Envelope: {"kbs:///default/kek/one", "in an envelope"},
	} {
		if got, err := o.Open(t.Context(), text, want[0]); err != nil || string(got) != want[1] {
			t.Errorf("Open(%s) = %q, %v", want[0], got, err)
		}
	}
	if len(v.Refused) == 0 {
		t.Error("the script has no text to refuse")
	}
	for name, text := range v.Refused {
		want, _, _ := strings.Cut(name, " ")
		got, err := o.Open(t.Context(), text, "default/db/password")
		var e *Error
		if !errors.As(err, &e) || string(e.Code) != want || got != nil {
			t.Errorf("%s: Open() = %q, %v, want code %s", name, got, err, want)
		}
	}
}

func TestPythonOpensOurTexts(t *testing.T) {
	const kid = "kbs:///default/sealed/signer"
	private, public, err := NewKey(kid)
	if err != nil {
		t.Fatal(err)
	}
	key, named, err := ParsePrivateKey(private)
	if err != nil || named != kid {
		t.Fatalf("ParsePrivateKey() = %q, %v", named, err)
	}
	s := Signer{Key: key, Kid: kid}
	kek := random(keySize)
	vault, errV := s.SealVault("default/db/password")
	envelope, errE := s.SealEnvelope("kbs:///default/kek/one", kek, []byte("a secret"))
	if err := errors.Join(errV, errE); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{vault: "hunter2", envelope: "a secret"} {
		got := python(t, "open", map[string]any{
			"jwk": string(public), "kid": kid, "text": text, "resources": map[string]string{
				"kbs:///default/db/password": "hunter2",
				"kbs:///default/kek/one":     base64.StdEncoding.EncodeToString(kek),
			},
		})
		if string(got) != fmt.Sprintln(want) {
			t.Errorf("Python opens %q, want %q", got, want)
		}
	}
}
