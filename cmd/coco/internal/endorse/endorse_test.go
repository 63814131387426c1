// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package endorse

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/cose"
	"github.com/coco-shim/coco/attestation/cose/cosetest"
)

// place is a directory with a signer's files and a launch.
func place(t *testing.T) (v cosetest.Vendor, path func(name string) string) {
	t.Helper()
	v, dir := cosetest.Make(t, nil), t.TempDir()
	path = func(name string) string { return filepath.Join(dir, name) }
	der, err := x509.MarshalPKCS8PrivateKey(v.Key)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range v.Chain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.([]byte)})...)
	}
	launch := `{"kind":"Pod","name":"pay","version":1,"platform":"snp","digest":"` + cosetest.Digest + `","vcpus":2}`
	for name, b := range map[string][]byte{
		"key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "chain": chain, "launch": []byte(launch),
		"list": []byte("[" + launch + "," + launch + "]"), "values": []byte(`{"values":[` + launch + `]}`), "empty": []byte("{}"),
	} {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return v, path
}

func run(t *testing.T, at time.Time, args ...string) (string, error) {
	t.Helper()
	cmd := command(func() time.Time { return at })
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestWhatIsEndorsedVerifies(t *testing.T) {
	_, path := place(t)
	for name, n := range map[string]int{"launch": 1, "list": 2, "values": 1} {
		out, err := run(t, cosetest.Signed, "--key", path("key"), "--chain", path("chain"), "--feed", "coco-guest-amd64",
			"--svn", "3", "--launch", path(name), "--out", path("out"))
		if err != nil {
			t.Fatal(err)
		}
		var said struct{ Issuer string }
		if err := json.Unmarshal([]byte(out), &said); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path("out"))
		if err != nil {
			t.Fatal(err)
		}
		least := uint64(3)
		want := cose.Expectations{Issuer: said.Issuer, Feed: "coco-guest-amd64", MinSVN: &least}
		e, err := cose.Verify(b, want)
		if err != nil || e.SVN != 3 || len(e.Measurements("snp")) != n || len(e.Measurements("tdx")) != 0 ||
			e.Launches[0].VCPUs != 2 || !strings.Contains(said.Issuer, "::subject:CN:ContainerPlat::eku:1.3.6") {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		least = 4
		if _, err := cose.Verify(b, want); err == nil {
			t.Error("the floor was raised, and the old version holds")
		}
	}
}

func TestWhatCouldNotBeVerifiedIsNotSigned(t *testing.T) {
	_, path := place(t)
	_, other := place(t)
	for _, tc := range []struct {
		name       string
		key, chain string
		launch     string
		at         time.Time
		want       string
	}{
		{
			"an expired signer", path("key"), path("chain"), path("launch"), cosetest.Signed.AddDate(1, 0, 0),
			"does not verify",
		},
		{"another's key", other("key"), path("chain"), path("launch"), cosetest.Signed, "not the key's"},
		{"no launch", path("key"), path("chain"), path("empty"), cosetest.Signed, "does not verify"},
		{"no key", path("chain"), path("chain"), path("launch"), cosetest.Signed, "--key"},
		{"no chain", path("key"), path("key"), path("launch"), cosetest.Signed, "--chain"},
		{"an empty chain", path("key"), path("launch"), path("launch"), cosetest.Signed, "no certificate above"},
	} {
		_, err := run(t, tc.at, "--key", tc.key, "--chain", tc.chain, "--feed", "f", "--svn", "3", "--launch", tc.launch,
			"--out", path("none"))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if _, err := os.Stat(path("none")); err == nil {
			t.Errorf("%s: a file was written", tc.name)
		}
	}
	if _, err := run(t, cosetest.Signed); err == nil {
		t.Error("nothing was given, and nothing refused")
	}
}
