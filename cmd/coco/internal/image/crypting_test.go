// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/coco-shim/coco/image/crypt"
)

const testKid = "kbs:///default/image-kek/app"

// keks writes two files with keys in a new working directory.
func keks(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for path, c := range map[string]string{"kek": "k", "other": "o"} {
		if err := os.WriteFile(path, []byte(strings.Repeat(c, 32)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// pull returns manifest and layers of an image as they lie in the registry.
func pull(t *testing.T, ref string) (*v1.Manifest, [][]byte) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, d := range m.Layers {
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(rc)
		if err = errors.Join(err, rc.Close()); err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return m, out
}

// sameContent fails unless both images have the same layers.
func sameContent(t *testing.T, a, b string) {
	t.Helper()
	_, x := pull(t, a)
	_, y := pull(t, b)
	if len(x) == 0 || len(x) != len(y) {
		t.Fatalf("%s has %d layers, %s has %d", a, len(x), b, len(y))
	}
	for i := range x {
		if !bytes.Equal(x[i], y[i]) {
			t.Errorf("layer %d of %s and %s differ", i, a, b)
		}
	}
}

func TestEncryptAndDecryptAnImage(t *testing.T) {
	for _, algorithm := range []string{crypt.GCM, crypt.CTR} {
		keks(t)
		host := newRegistry(t, true)
		plain, sealed, open := host+"/team/app:1", host+"/team/app:enc", host+"/team/app:dec"
		push(t, plain)
		out := expect(t, 0, "encrypt", "--kid", testKid, "--kek", "kek", "--algorithm", algorithm, plain, sealed)
		if !strings.HasPrefix(out, host+"/team/app@sha256:") {
			t.Errorf("encrypt prints %q", out)
		}
		m, layers := pull(t, sealed)
		_, before := pull(t, plain)
		for i, d := range m.Layers {
			if string(d.MediaType) != "application/vnd.oci.image.layer.v1.tar+gzip+encrypted" {
				t.Errorf("media type %s", d.MediaType)
			}
			if bytes.Contains(layers[i], before[i][:32]) {
				t.Error("a layer is not encrypted")
			}
		}
		expect(t, 1, "encrypt", "--kid", testKid, "--kek", "kek", sealed, host+"/team/app:twice")
		expect(t, 1, "decrypt", "--kek", testKid+"=other", sealed, open)
		expect(t, 1, "decrypt", "--kek", "kbs:///a/b/c=kek", sealed, open)
		expect(t, 0, "decrypt", "--kek", testKid+"=kek", sealed, open)
		sameContent(t, plain, open)
	}
}

// An encrypted layer that is another one of the same key, in the place of the right one.
func TestAnotherLayerIsNotDecrypted(t *testing.T) {
	keks(t)
	host := newRegistry(t, true)
	one, two := host+"/team/app:1", host+"/team/other:1"
	push(t, one)
	push(t, two)
	for _, ref := range []string{one, two} {
		expect(t, 0, "encrypt", "--kid", testKid, "--kek", "kek", ref, ref+"-enc")
	}
	m, _ := pull(t, one+"-enc")
	other, layers := pull(t, two+"-enc")
	m.Layers[0] = other.Layers[0]
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(host + "/team/app:mixed")
	if err != nil {
		t.Fatal(err)
	}
	err = remote.WriteLayer(to.Context(), staticLayer(t, layers[0], other.Layers[0]))
	if err = errors.Join(err, remote.Put(to, manifest(raw))); err != nil {
		t.Fatal(err)
	}
	got := expect(t, 1, "decrypt", "--kek", testKid+"=kek", host+"/team/app:mixed", host+"/team/app:dec")
	if !strings.Contains(got, "DiffID") {
		t.Errorf("decrypt: %s", got)
	}
}

func staticLayer(t *testing.T, b []byte, d v1.Descriptor) v1.Layer {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "layer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return blob{f, d}
}

func TestTheProviderAnswersLocallyOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0", "example.com:0", "x"} {
		if l, err := listenOn(t.Context(), address); err == nil {
			l.Close()
			t.Errorf("listens on %s", address)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	k := keyFiles{testKid: bytes.Repeat([]byte{7}, 32)}
	encode := base64.StdEncoding.EncodeToString
	ask := func(op, parameters string) string {
		return fmt.Sprintf(`{"op":%q,"keywrapparams":{"ec":{"Parameters":{"attestation-agent":[%q]},"DecryptConfig":{}},`+
			`"optsdata":%q},"keyunwrapparams":{"dc":null,"annotation":null}}`, op, encode([]byte(parameters)),
			encode([]byte("secret")))
	}
	good := "keyid=" + testKid + "::algorithm=A256GCM"
	out, err := k.wrap(t.Context(), []byte(ask("keywrap", good)))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Results struct{ Annotation []byte } `json:"keywrapresults"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatal(err)
	}
	back, err := k.unwrap(t.Context(), fmt.Appendf(nil,
		`{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{},"annotation":%q}}`,
		encode(answer.Results.Annotation)))
	if err != nil || !strings.Contains(string(back), encode([]byte("secret"))) {
		t.Errorf("unwrap: %s, %v", back, err)
	}
	for name, request := range map[string]string{
		"other op": ask("keyunwrap", good), "no key": ask("keywrap", "keyid=kbs:///a/b/c"), "no keyid": ask("keywrap", ""),
		"a path":    ask("keywrap", good+"::keypath=/etc/shadow"),
		"sample":    ask("keywrap", "sample=true"),
		"algorithm": ask("keywrap", "keyid="+testKid+"::algorithm=A128GCM"),
		"no JSON":   "x", "op twice": `{"op":"keywrap",` + ask("keywrap", good)[1:],
		"other provider": strings.Replace(ask("keywrap", good), "attestation-agent", "isecl", 1),
	} {
		if out, err := k.wrap(t.Context(), []byte(request)); err == nil {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// skopeo encrypts through our provider what we decrypt, and decrypts what we encrypt.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("no skopeo (apt-get install skopeo)")
	}
	keks(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	l, err := listenOn(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, keyFiles{testKid: []byte(strings.Repeat("k", 32))}) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	config := filepath.Join(dir, "ocicrypt.conf")
	text := fmt.Sprintf(`{"key-providers":{"attestation-agent":{"grpc":%q}}}`, l.Addr())
	policy := filepath.Join(dir, "policy.json")
	err = os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600)
	if err = errors.Join(err, os.WriteFile(config, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	copied := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{
			"--policy", policy, "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
		}, args...)...)
		cmd.Env = append(os.Environ(), "OCICRYPT_KEYPROVIDER_CONFIG="+config)
		out, err := cmd.CombinedOutput()
		if bytes.Contains(out, []byte("protocol not recognized")) {
			t.Skip("this skopeo's ocicrypt knows no key providers, as that of Debian 12 (1.9.3)")
		}
		if err != nil {
			t.Fatalf("skopeo copy %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	host := newRegistry(t, true)
	app := host + "/team/app"
	img, err := random.Image(3000, 2)
	if err != nil {
		t.Fatal(err)
	}
	write(t, app+":1", img)
	for _, algorithm := range []string{crypt.GCM, crypt.CTR} {
		copied("--encryption-key", "provider:attestation-agent:keyid="+testKid+"::algorithm="+algorithm,
			"docker://"+app+":1", "docker://"+app+":skopeo")
		expect(t, 0, "decrypt", "--kek", testKid+"=kek", app+":skopeo", app+":ours")
		sameContent(t, app+":1", app+":ours")
		expect(t, 0, "encrypt", "--kid", testKid, "--kek", "kek", "--algorithm", algorithm, app+":1", app+":encrypted")
		copied("--decryption-key", "provider:attestation-agent:x", "docker://"+app+":encrypted", "docker://"+app+":opened")
		sameContent(t, app+":1", app+":opened")
	}
}

func TestTheListenerOnASocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "coco")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := listenOn(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
