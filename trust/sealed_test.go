// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/sealed"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// kbsServer is a broker that believes any guest and counts requests by their paths.
type kbsServer struct {
	*httptest.Server
	resources map[string][]byte

	mu    sync.Mutex
	count map[string]int
	key   *kbs.PublicKey
}

func newServer(t *testing.T, resources map[string][]byte) *kbsServer {
	t.Helper()
	b := &kbsServer{resources: resources, count: map[string]int{}}
	b.Server = httptest.NewUnstartedServer(b)
	b.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.StartTLS()
	t.Cleanup(b.Close)
	return b
}

func (b *kbsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/kbs/v0/")
	b.count[path]++
	switch path {
	case "auth":
		nonce := make([]byte, 32)
		_, _ = rand.Read(nonce)
		http.SetCookie(w, &http.Cookie{Name: kbs.Cookie, Value: "s", Path: "/"})
		fmt.Fprintf(w, `{"nonce":%q,"extra-params":""}`, base64.StdEncoding.EncodeToString(nonce))
	case "attest":
		body, _ := io.ReadAll(r.Body)
		a, err := kbs.ParseAttestation(body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		b.key = a.Key
		fmt.Fprint(w, `{"token":"a.b.c"}`)
	default:
		secret, ok := b.resources[strings.TrimPrefix(path, "resource/")]
		if !ok {
			text, _ := json.Marshal(&kbs.Error{Type: kbs.PolicyDeny, Detail: "Access denied by policy"})
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write(text)
			return
		}
		text, _ := b.key.Seal(secret)
		_, _ = w.Write(text)
	}
}

// guestOf runs coco-trust for a pod whose policy accepts signers, and returns how to ask it.
func guestOf(t *testing.T, b *kbsServer, accepted policy.Sealed) func(wire.Request) wire.Answer {
	t.Helper()
	const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	text, err := policy.Encode(&policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: new("h")}, Sealed: accepted},
		Containers: []policy.Container{{
			Name: "a", Kind: policy.App, Restart: policy.Never,
			Image: policy.Image{Manifest: "sha256:" + hash, Layers: []string{hash}},
			Process: policy.Process{
				Args: []string{"/a"}, Cwd: "/", Env: []policy.Env{{Name: "A", Value: policy.Value{Type: policy.TypeSealed}}},
			},
			Linux:   policy.Linux{Namespaces: []string{"mount"}, Seccomp: []string{policy.NoSeccomp}},
			Secrets: []policy.Secret{{Resource: "kbs:///default/db/password", Env: "A", Sealed: true}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Certificate().Raw})
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName: string(text), initdata.FileAA: fmt.Sprintf(
			"insecure = true\n[token_configs.kbs]\nurl = %q\ndeadline = \"1s\"\ncert = '''\n%s'''\n", b.URL, cert),
	})
	if err != nil {
		t.Fatal(err)
	}
	agent, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- Run(t.Context(), theirs, Devices{}) }()
	t.Cleanup(func() {
		agent.Close()
		if err := <-done; err != nil {
			t.Errorf("at the connection's end: %v", err)
		}
	})
	if err := wire.Write(agent, wire.Setup{Initdata: string(d.Text), TEE: "sample"}); err != nil {
		t.Fatal(err)
	}
	hello(t, agent)
	return func(req wire.Request) (a wire.Answer) {
		if err := wire.Write(agent, req); err != nil {
			t.Fatal(err)
		}
		if err := wire.Read(agent, &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
}

const signerKid = "kbs:///default/sealed/signer"

// signer makes a signer and its public JWK.
func signer(t *testing.T, kid string) (sealed.Signer, []byte) {
	t.Helper()
	private, public, err := sealed.NewKey(kid)
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := sealed.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return sealed.Signer{Key: key, Kid: kid}, public
}

// must returns a function that returns a sealed text, or ends the test.
func must(t *testing.T) func(string, error) string {
	t.Helper()
	return func(text string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
}

// TestTwentySealedVariablesCostOneAttestation: the guest attests once for a container, and gets the signer's key once.
func TestTwentySealedVariablesCostOneAttestation(t *testing.T) {
	s, public := signer(t, signerKid)
	b := newServer(t, map[string][]byte{"default/sealed/signer": public})
	ask := guestOf(t, b, policy.Sealed{Signers: []policy.Signer{{Kid: signerKid}}})
	for i := range 20 {
		path := fmt.Sprintf("default/db/s%d", i)
		b.resources[path] = []byte("secret " + path)
		a := ask(wire.Request{
			Resource: "kbs:///" + path, Sealed: must(t)(s.SealVault(path)), Container: "c",
		})
		if a.Error != nil || string(a.Secret) != "secret "+path {
			t.Errorf("%s: %q, %v", path, a.Secret, a.Error)
		}
	}
	if b.count["auth"] != 1 || b.count["attest"] != 1 || b.count["resource/default/sealed/signer"] != 1 {
		t.Errorf("the broker's requests: %v", b.count)
	}
	// A new key of the signer counts from the next container on.
	s, b.resources["default/sealed/signer"] = signer(t, signerKid)
	text := must(t)(s.SealVault("default/db/s0"))
	for _, tc := range []struct{ container, want string }{{"c", "signature"}, {"d", ""}} {
		a := ask(wire.Request{Resource: "kbs:///default/db/s0", Sealed: text, Container: tc.container})
		if code := codeOf(a); code != tc.want {
			t.Errorf("container %s: %v, want code %q", tc.container, a.Error, tc.want)
		}
	}
}

func codeOf(a wire.Answer) string {
	if a.Error == nil {
		return ""
	}
	return a.Error.Code
}

func TestSealedTextsThatTheGuestRefuses(t *testing.T) {
	s, public := signer(t, signerKid)
	other, _ := signer(t, signerKid)
	own, ownKey := signer(t, "team a")
	var jwk struct{ X, Y string }
	if err := json.Unmarshal(ownKey, &jwk); err != nil {
		t.Fatal(err)
	}
	kek := bytes.Repeat([]byte{7}, 32)
	b := newServer(t, map[string][]byte{
		"default/sealed/signer": public, "default/db/password": []byte("canary"), "default/db/root": []byte("canary"),
		"default/kek/one": kek,
	})
	accepted := policy.Sealed{Signers: []policy.Signer{{Kid: signerKid}, {Kid: "team a", X: jwk.X, Y: jwk.Y}}}
	ask := guestOf(t, b, accepted)
	const password = "kbs:///default/db/password"
	vault := must(t)(s.SealVault(password))
	envelope := must(t)(s.SealEnvelope("kbs:///default/kek/one", kek, []byte("in an envelope")))
	flipped := vault[:len(vault)-5] + "AAAA" + vault[len(vault)-1:]
	unsigned := sealed.Signer{InsecureUnsigned: true}
	stranger := sealed.Signer{Key: s.Key, Kid: "kbs:///default/sealed/x"}
	badKey := must(t)(s.SealEnvelope(password, kek, []byte("x")))
	const absent = "kbs:///default/db/none"
	for name, tc := range map[string]struct{ text, resource, code, want string }{
		"a vault":              {vault, password, "", "canary"},
		"an envelope":          {envelope, "kbs:///default/kek/one", "", "in an envelope"},
		"a key of the policy":  {must(t)(own.SealVault(password)), password, "", "canary"},
		"no sealed text":       {"plain", password, "malformed", "it is not sealed.HEADER"},
		"flipped bytes":        {flipped, password, "signature", "is not that of"},
		"another signer's":     {must(t)(other.SealVault(password)), password, "signature", "is not that of"},
		"unsigned":             {must(t)(unsigned.SealVault(password)), password, "no-signer", "it is not signed"},
		"another kid":          {must(t)(stranger.SealVault(password)), password, "no-signer", "is not one of"},
		"of another place":     {must(t)(s.SealVault("default/db/root")), password, "moved", "only " + password + " may be"},
		"an absent resource":   {must(t)(s.SealVault(absent)), absent, "fetch", absent + ": [denied]"},
		"a key that is no key": {badKey, password, "decryption", "encrypted_key"},
	} {
		a := ask(wire.Request{Resource: tc.resource, Sealed: tc.text, Container: name})
		got := string(a.Secret)
		if a.Error != nil {
			got = a.Error.Error()
		}
		if codeOf(a) != tc.code || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want [%s] %s", name, got, tc.code, tc.want)
		}
		if a.Error != nil && (strings.Contains(got, "canary") || strings.Contains(got, tc.text)) {
			t.Errorf("%s: the failure has a secret: %s", name, got)
		}
	}
	b.Close()
	a := guestOf(t, b, accepted)(wire.Request{Resource: password, Sealed: vault})
	if codeOf(a) != "fetch" || !strings.Contains(a.Error.Text, "[unavailable]") {
		t.Errorf("without a broker: %v", a.Error)
	}
}

// TestUnsignedTextsNeedTheInsecureSwitch: the policy alone can accept texts without a signature.
func TestUnsignedTextsNeedTheInsecureSwitch(t *testing.T) {
	b := newServer(t, map[string][]byte{"default/db/password": []byte("hunter2")})
	text := must(t)(sealed.Signer{InsecureUnsigned: true}.SealVault("default/db/password"))
	a := guestOf(t, b, policy.Sealed{InsecureUnsigned: true})(
		wire.Request{Resource: "kbs:///default/db/password", Sealed: text})
	if string(a.Secret) != "hunter2" {
		t.Errorf("%q, %v", a.Secret, a.Error)
	}
}

// TestTheGuestOpensWhatPythonSealed: texts of an independent implementation, and its texts that must not be opened,
// through coco-trust as a guest runs it.
func TestTheGuestOpensWhatPythonSealed(t *testing.T) {
	interpreter := testvm.Unpacked("python", "python3")
	if out, err := exec.Command(interpreter, "-c", "import jwcrypto, cryptography").CombinedOutput(); err != nil {
		t.Skipf("%s lacks jwcrypto (tests/setup.sh python): %s", interpreter, out)
	}
	script := filepath.Join(testvm.RepoRoot(), "attestation/sealed/testdata/sealed.py")
	out, err := exec.CommandContext(t.Context(), interpreter, script, "seal").Output()
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Kid, Vault, Envelope string
		Resources, Refused   map[string]string
		Kek                  []byte
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	b := newServer(t, map[string][]byte{"default/kek/one": v.Kek})
	for path, text := range v.Resources {
		b.resources[path] = []byte(text)
	}
	ask := guestOf(t, b, policy.Sealed{Signers: []policy.Signer{{Kid: v.Kid}}})
	const password = "kbs:///default/db/password"
	if a := ask(wire.Request{Resource: password, Sealed: v.Vault}); string(a.Secret) != "hunter2" {
		t.Errorf("the vault: %q, %v", a.Secret, a.Error)
	}
	a := ask(wire.Request{Resource: "kbs:///default/kek/one", Sealed: v.Envelope})
	if string(a.Secret) != "in an envelope" {
		t.Errorf("the envelope: %q, %v", a.Secret, a.Error)
	}
	if len(v.Refused) < 10 {
		t.Errorf("the script has %d texts to refuse", len(v.Refused))
	}
	for name, text := range v.Refused {
		want, _, _ := strings.Cut(name, " ")
		if a := ask(wire.Request{Resource: password, Sealed: text}); codeOf(a) != want || a.Secret != nil {
			t.Errorf("%s: %q, %v", name, a.Secret, a.Error)
		}
	}
}
