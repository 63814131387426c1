// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package signed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func public(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

func keys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"P-256": p256, "Ed25519": ed}
}

var sum = strings.Repeat("0a", 32)

func TestWhatIsSignedIsRead(t *testing.T) {
	s := Statement{Name: "conf", Counter: 7, Files: map[string]string{"b": sum, "a/x y": sum}}
	for name, key := range keys(t) {
		text, err := s.Sign(key)
		if err != nil {
			t.Fatal(name, err)
		}
		others := keys(t)
		trusted := []string{"", public(t, others["P-256"]), public(t, others["Ed25519"]), public(t, key)}
		got, err := Verify(text, trusted)
		if d := cmp.Diff(s, got); err != nil || d != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
		if _, err := Verify(text, trusted[:3]); err == nil {
			t.Errorf("%s: it is verified by other keys", name)
		}
		for i := range text {
			for bit := range 8 {
				bad := []byte(string(text))
				bad[i] ^= 1 << bit
				if _, err := Verify(bad, trusted); err == nil {
					t.Errorf("%s: with bit %d of byte %d flipped it is verified", name, bit, i)
				}
			}
		}
	}
}

func TestWhatIsNotSigned(t *testing.T) {
	key := keys(t)["Ed25519"]
	file := func(p, sum string) Statement { return Statement{Name: "a", Files: map[string]string{p: sum}} }
	for name, s := range map[string]Statement{
		"no name": {}, "two lines": {Name: "a\nb"}, "up": file("../a", sum), "itself": file(FileName, sum),
		"root": file("/a", sum), "long way": file("a//b", sum), "state": file("..data", sum), "digest": file("a", "0A"),
		"line": file("a\nb", sum),
	} {
		if _, err := s.Sign(key); err == nil {
			t.Errorf("%s is signed", name)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Statement{Name: "a"}).Sign(p384); err == nil {
		t.Error("a key on another curve signs")
	}
}

// TestFormsThatAreRefused though they are signed: each statement has one form.
func TestFormsThatAreRefused(t *testing.T) {
	key, ok := keys(t)["Ed25519"].(ed25519.PrivateKey)
	if !ok {
		t.Fatal("no key")
	}
	good := title + "\nfor a\ncounter 1\n" + sum + " f\n"
	for name, body := range map[string]string{
		"good": good, "title": "x" + good, "counter": strings.Replace(good, " 1", " 01", 1), "order": good + sum + " e\n",
		"twice": good + sum + " f\n", "empty line": good + "\n", "negative": strings.Replace(good, " 1", " -1", 1),
		"no name": strings.Replace(good, "for a", "for", 1), "cut": title + "\n",
		"return": strings.ReplaceAll(good, "\n", "\r\n"),
	} {
		text := body + prefix + base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(body))) + "\n"
		if _, err := Verify([]byte(text), []string{public(t, key)}); (err == nil) != (name == "good") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenSSLSigns: an owner needs no program of ours.
func TestOpenSSLSigns(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	dir := t.TempDir()
	body := filepath.Join(dir, "body")
	text := title + "\nfor conf\ncounter 3\n" + sum + " key\n"
	if err := os.WriteFile(body, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p256, ok := keys(t)["P-256"].(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("no key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	sig, err := exec.CommandContext(t.Context(), openssl, "dgst", "-sha256", "-sign", file, body).Output()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Verify([]byte(text+prefix+base64.StdEncoding.EncodeToString(sig)+"\n"), []string{public(t, p256)})
	if err != nil || s.Counter != 3 || s.Files["key"] != sum {
		t.Errorf("%+v, %v", s, err)
	}
}

func FuzzVerify(f *testing.F) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	text, err := Statement{Name: "a", Files: map[string]string{"f": sum}}.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parse(text); err == nil && string(s.encode()) != string(text) {
			t.Errorf("%q is read as %q", text, s.encode())
		}
		if _, err := Verify(text, []string{"MCowBQYDK2VwAyEA"}); err == nil {
			t.Error("it is verified by a key that is none")
		}
	})
}
