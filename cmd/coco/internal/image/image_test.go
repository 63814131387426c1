// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	memory "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// run runs a command, and returns what it prints and its exit status.
func run(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
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

// expect runs a command that has to end with a status, and returns its output or the text of its error.
func expect(t *testing.T, status int, args ...string) string {
	t.Helper()
	out, got, err := run(t, args...)
	if got != status {
		t.Errorf("coco image %s: status %d, %v, want %d", strings.Join(args, " "), got, err, status)
	}
	if err != nil {
		return err.Error()
	}
	return out
}

// newRegistry serves a registry from memory. The one without the API for referrers gets them by tags.
func newRegistry(t *testing.T, referrers bool) string {
	t.Helper()
	s := httptest.NewServer(memory.New(memory.WithReferrersSupport(referrers),
		memory.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// push stores an image of two layers, and returns its digest.
func push(t *testing.T, ref string) string {
	t.Helper()
	img, err := random.Image(64, 2)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, ref, img)
}

func write(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(r, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// keys makes two pairs of keys in a new working directory.
func keys(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	expect(t, 0, "keygen", "release")
	expect(t, 0, "keygen", "other")
	expect(t, 1, "keygen", "other") // it would overwrite the key
	if info, err := os.Stat("release.key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v, %v", info, err)
	}
}

func TestSignAndVerify(t *testing.T) {
	for _, referrers := range []bool{true, false} {
		for _, form := range []string{formBundle, formPayload, formBundle + "," + formPayload} {
			keys(t)
			host := newRegistry(t, referrers)
			app := host + "/team/app:1"
			digest := push(t, app)
			if got := expect(t, notVerified, "verify", "--key", "release.pub", app); !strings.Contains(got, "there is none") {
				t.Errorf("unsigned: %s", got)
			}
			out := expect(t, 0, "sign", "--key", "other.key", "--form", form, app)
			if want := host + "/team/app@" + digest + "\n"; out != want {
				t.Errorf("sign prints %q, want %q", out, want)
			}
			got := expect(t, notVerified, "verify", "--key", "release.pub", app)
			if !strings.Contains(got, "not that of this key") {
				t.Errorf("signed by another key: %s", got)
			}
			expect(t, 0, "sign", "--key", "release.key", "--form", form, app)
			for _, key := range []string{"release.pub", "other.pub"} { // the second signature keeps the first
				expect(t, 0, "verify", "--key", key, app)
				expect(t, 0, "verify", "--key", key, host+"/team/app@"+digest)
			}
			push(t, app) // another content under the same tag
			expect(t, notVerified, "verify", "--key", "release.pub", app)
		}
	}
}

// Image and signatures are copied into another repository, as a mirror does, or somebody who has a repository there.
func TestACopyElsewhereIsNotSigned(t *testing.T) {
	keys(t)
	host := newRegistry(t, true)
	app, copied := host+"/team/app:1", host+"/mirror/app:1"
	digest := push(t, app)
	expect(t, 0, "sign", "--key", "release.key", app)
	for _, tag := range []string{":1", ":" + strings.Replace(digest, ":", "-", 1) + ".sig"} {
		from, err := name.ParseReference(host + "/team/app" + tag)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, host+"/mirror/app"+tag, img)
	}
	got := expect(t, notVerified, "verify", "--key", "release.pub", copied)
	if !strings.Contains(got, "not in "+host+"/mirror/app") {
		t.Errorf("the copy: %s", got)
	}
	expect(t, 0, "verify", "--key", "release.pub", "--identity", host+"/team/app", copied)
}

func TestVerifyByPolicy(t *testing.T) {
	keys(t)
	host := newRegistry(t, true)
	app := host + "/team/app:1"
	push(t, app)
	expect(t, 0, "sign", "--key", "release.key", app)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	policy := func(requirement string) string {
		text := `{"default":[{"type":"reject"}],"transports":{"docker":{"` + host + `/team":[` + requirement + `]}}}`
		if err := os.WriteFile("policy.json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "policy.json"
	}
	by := func(key, identity string) string {
		return `{"type":"sigstoreSigned","keyPath":"` + key + `","signedIdentity":` + identity + `}`
	}
	const match = `{"type":"matchRepository"}`
	release, other := by("file://"+filepath.Join(wd, "release.pub"), match), by(filepath.Join(wd, "other.pub"), match)
	for requirement, status := range map[string]int{
		release: 0, other: notVerified, release + "," + other: notVerified, `{"type":"reject"}`: notVerified,
		`{"type":"insecureAcceptAnything"}`: 0, `{"type":"signedBy"}`: 1, by("kbs:///a/b/c", match): 1,
		by(filepath.Join(wd, "release.pub"), `{"type":"exactRepository","dockerRepository":"registry.example/app"}`): notVerified,
	} {
		out := expect(t, status, "verify", "--policy", policy(requirement), app)
		if strings.Contains(requirement, "Anything") && !strings.Contains(out, "without a signature") {
			t.Errorf("%s: %s", requirement, out)
		}
	}
	outside := host + "/other/app:1"
	push(t, outside)
	expect(t, notVerified, "verify", "--policy", policy(release), outside)
}

func TestLayerStatements(t *testing.T) {
	keys(t)
	host := newRegistry(t, true)
	app := host + "/team/app:1"
	layers, err := random.Image(64, 2)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(layers, platformConfig(t, layers))
	if err != nil {
		t.Fatal(err)
	}
	digest := write(t, app, img)
	expect(t, 0, "sign", "--key", "release.key", app)
	expect(t, notVerified, "verify", "--key", "release.pub", "--layers", app)
	expect(t, 1, "attest", "--key", "release.key", "--platform", "linux/arm64", app)
	expect(t, 0, "attest", "--key", "other.key", app)
	expect(t, notVerified, "verify", "--key", "release.pub", "--layers", app)
	expect(t, 0, "attest", "--key", "release.key", app)
	var out verified
	text := expect(t, 0, "verify", "--key", "release.pub", "--layers", "--json", app)
	if err := json.Unmarshal([]byte(text), &out); err != nil || out.Layers == nil || !out.Signed {
		t.Fatalf("%s: %v", text, err)
	}
	if out.Layers.Manifest != digest || len(out.Layers.Roots) != 2 || out.Layers.Roots[0] == out.Layers.Roots[1] {
		t.Errorf("layers: %+v, want those of %s", out.Layers, digest)
	}
	expect(t, notVerified, "verify", "--key", "release.pub", "--layers", "--platform", "linux/arm64", app)
	// The statement does not replace the signature.
	unsigned := host + "/team/other:1"
	write(t, unsigned, img)
	expect(t, 0, "attest", "--key", "release.key", unsigned)
	expect(t, notVerified, "verify", "--key", "release.pub", "--layers", unsigned)
}

func platformConfig(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	return c
}

func TestAnIndexIsSignedAsAWhole(t *testing.T) {
	keys(t)
	host := newRegistry(t, true)
	img, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	ref, err := name.ParseReference(host + "/team/app:1")
	if err == nil {
		err = remote.WriteIndex(ref, index)
	}
	if err != nil {
		t.Fatal(err)
	}
	expect(t, 0, "sign", "--key", "release.key", ref.String())
	expect(t, 0, "verify", "--key", "release.pub", ref.String())
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, notVerified, "verify", "--key", "release.pub", host+"/team/app@"+d.String())
}

func TestTheCommandsOnGuestImagesAreElsewhere(t *testing.T) {
	for args, want := range map[string]string{
		"build --agent bin/coco-agent --out dist/guest": "run coco guest build",
		"inspect --json dist/guest":                     "run coco guest inspect",
		"build --help":                                  "run coco guest build",
	} {
		if got := expect(t, 1, strings.Fields(args)...); !strings.HasSuffix(got, want) {
			t.Errorf("coco image %s = %s, want an error that ends in %q", args, got, want)
		}
	}
}
