// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a command, and returns what it prints and its exit status.
func run(t *testing.T, in string, args ...string) (string, int, error) {
	t.Helper()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	var coded interface{ ExitCode() int }
	switch {
	case errors.As(err, &coded):
		return out.String(), coded.ExitCode(), err
	case err != nil:
		return out.String(), 1, err
	}
	return out.String(), 0, nil
}

// expect runs a command that has to end with a status.
func expect(t *testing.T, status int, in string, args ...string) string {
	t.Helper()
	out, got, err := run(t, in, args...)
	if got != status {
		t.Errorf("coco secret %s: status %d, %v, want %d", strings.Join(args, " "), got, err, status)
	}
	return out
}

func TestFromAKeyToAnOpenedSecret(t *testing.T) {
	t.Chdir(t.TempDir())
	for path, text := range map[string]string{
		"repo/default/db/password": "hunter2", "repo/default/kek/one": strings.Repeat("k", 32), "value": "in an envelope",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, 0, "", "keygen", "--kid", "kbs:///default/sealed/signer", "signer")
	expect(t, 1, "", "keygen", "signer") // it would overwrite the key
	expect(t, 0, "", "keygen", "other")
	if info, err := os.Stat("signer.private.jwk"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v, %v", info, err)
	}
	vault := expect(t, 0, "", "seal", "--key", "signer.private.jwk", "--resource", "kbs:///default/db/password")
	envelope := expect(t, 0, "", "seal", "--key", "signer.private.jwk", "--resource", "default/kek/one",
		"--kek", "repo/default/kek/one", "--in", "value")
	open := []string{"unseal", "--repository", "repo", "--key", "signer.public.jwk", "--allow"}
	if out := expect(t, 0, vault, append(open, "kbs:///default/db/password")...); out != "hunter2" {
		t.Errorf("vault: %q", out)
	}
	if out := expect(t, 0, envelope, append(open, "default/kek/one")...); out != "in an envelope" {
		t.Errorf("envelope: %q", out)
	}
	out := expect(t, 0, vault, "inspect", "--key", "signer.public.jwk", "--json")
	want := `{"type":"vault","resource":"kbs:///default/db/password","kid":"kbs:///default/sealed/signer",` +
		`"signed":true,"verified":true}`
	if got := strings.NewReplacer(" ", "", "\n", "").Replace(out); got != want {
		t.Errorf("inspect prints %s, want %s", got, want)
	}
	if out := expect(t, 0, vault, "inspect"); !strings.Contains(out, "not verified") {
		t.Errorf("inspect without a key prints %q", out)
	}

	expect(t, 2, "hunter2", "inspect")
	expect(t, 3, vault, "inspect", "--key", "other.public.jwk")
	expect(t, 1, vault, "inspect", "--key", "other.private.jwk")
	expect(t, 4, vault, append(open, "default/kek/one")...)
	expect(t, 5, strings.TrimSpace(expect(t, 0, "", "seal", "--key", "signer.private.jwk", "--resource", "a/b/c")),
		append(open, "a/b/c")...)
	if err := os.WriteFile("repo/default/kek/one", []byte(strings.Repeat("x", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, 6, envelope, append(open, "default/kek/one")...)
}

func TestUnsignedNeedsItsSwitch(t *testing.T) {
	dir := t.TempDir()
	expect(t, 1, "", "seal", "--resource", "a/b/c")
	text := expect(t, 0, "", "seal", "--insecure-unsigned", "--resource", "a/b/c")
	path := filepath.Join(dir, "a", "b", "c")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	open := []string{"unseal", "--repository", dir, "--allow", "a/b/c"}
	expect(t, 1, text, open...)
	if out := expect(t, 0, text, append(open, "--insecure-unsigned")...); out != "x" {
		t.Errorf("unseal prints %q", out)
	}
	if out := expect(t, 0, text, "inspect"); !strings.Contains(out, "signature: none") {
		t.Errorf("inspect prints %q", out)
	}
}

func TestAKeyWithoutAKid(t *testing.T) {
	t.Chdir(t.TempDir())
	expect(t, 0, "", "keygen", "k")
	if _, status, err := run(t, "", "seal", "--key", "k.private.jwk", "--resource", "a/b/c"); status != 1 ||
		!strings.Contains(err.Error(), "--kid") {
		t.Errorf("without a kid: %d, %v", status, err)
	}
	expect(t, 0, "", "seal", "--key", "k.private.jwk", "--kid", "release", "--resource", "a/b/c")
}
