// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/maa"
	"github.com/coco-shim/coco/azure/release"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a guest, its clients, and the services that it asks.
type world struct {
	*testing.T
	fake   *fake.Fake
	http   *http.Client
	maa    *maa.Client
	vault  *akv.Client
	made   *snptest.Made
	key    *rsa.PrivateKey // of the guest
	report func([]byte)    // changes the report before it is signed

	// skew is how far the guest's clock is off.
	skew time.Duration
}

var guestKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newWorld(t *testing.T, edit func(*fake.Options)) *world {
	t.Helper()
	w := &world{T: t, key: guestKey()}
	w.made = snptest.Make(t, snptest.Spec{Edit: func(b []byte) { clear(b[0x50:0x90]) }})
	o := fake.Options{Verifier: &w.made.Verifier, Now: func() time.Time { return snptest.Now }, Chain: w.chain()}
	if edit != nil {
		edit(&o)
	}
	var err error
	if w.fake, err = fake.New(o); err != nil {
		t.Fatal(err)
	}
	if err := w.fake.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(w.fake.CA())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	w.http = azhttp.New([]*x509.Certificate{ca})
	t.Cleanup(func() {
		w.http.CloseIdleConnections()
		if err := w.fake.Close(); err != nil {
			t.Error(err)
		}
	})
	w.maa = &maa.Client{HTTP: w.client("attestation service"), Issuer: w.fake.URL(fake.MAA)}
	w.vault = &akv.Client{
		HTTP: w.client("vault"), Roots: roots,
		Tokens: entra.Metadata{Client: w.client("metadata service"), URL: w.fake.URL(fake.Metadata)},
	}
	return w
}

func (w *world) client(name string) *azhttp.Client {
	return &azhttp.Client{Service: name, HTTP: w.http, Attempts: 3, Pause: time.Millisecond, Now: func() time.Time {
		return snptest.Now.Add(w.skew)
	}}
}

func (w *world) chain() []byte {
	var out []byte
	for _, der := range [][]byte{w.made.Leaf, w.made.Middle} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// runtime is the runtime data for a key.
func runtime(t testing.TB, k *rsa.PublicKey) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "kid": "wrap", "key_ops": []string{"encrypt"},
		"n": base64.RawURLEncoding.EncodeToString(k.N.Bytes()), "e": "AQAB",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// attest gets a token and checks it.
func (w *world) attest(ctx context.Context) (string, *maa.Claims, error) {
	data := runtime(w, &w.key.PublicKey)
	digest := maa.ReportData(data)
	made := w.made.Again(w, func(b []byte) {
		copy(b[0x50:0x90], digest[:])
		if w.report != nil {
			w.report(b)
		}
	})
	token, at, err := w.maa.Attest(ctx, maa.Evidence{
		Kind: maa.SevSnpVM, Report: made.Evidence.Report, Chain: w.chain(), RuntimeData: data,
	})
	if err != nil {
		return "", nil, err
	}
	claims, err := w.maa.Check(ctx, token, maa.Expect{Kind: maa.SevSnpVM, At: at, RuntimeData: data})
	return token, claims, err
}

// policy is one that the world's reports satisfy, after a change.
func (w *world) policy(edit func(authority *string, conds []map[string]any)) *release.Policy {
	w.Helper()
	hexOf := func(from, n int) string { return fmt.Sprintf("%x", w.made.Evidence.Report[from:from+n]) }
	conds := []map[string]any{
		{"claim": release.ClaimType, "equals": "sevsnpvm"},
		{"claim": release.ClaimHostData, "equals": hexOf(0xC0, 32)},
		{"claim": release.ClaimMeasurement, "equals": hexOf(0x90, 48)},
		{"claim": release.ClaimDebuggable, "equals": "false"},
		{"claim": release.ClaimVMPL, "equals": "0"},
		{"claim": release.ClaimGuestSVN, "greaterOrEquals": binary.LittleEndian.Uint32(w.made.Evidence.Report[4:])},
	}
	authority := w.fake.URL(fake.MAA)
	if edit != nil {
		edit(&authority, conds)
	}
	b, err := json.Marshal(map[string]any{"version": "1.0.0", "anyOf": []any{
		map[string]any{"authority": authority, "allOf": conds},
	}})
	if err != nil {
		w.Fatal(err)
	}
	p, err := release.Parse(b)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// call sends a request of an administrator.
func (w *world) call(s fake.Service, method, path string, body any) (int, map[string]any) {
	w.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		w.Fatal(err)
	}
	token, err := w.vault.Tokens.Token(w.Context(), "https://localhost")
	if err != nil {
		w.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.Context(), method, w.fake.URL(s)+path+"?api-version=7.4",
		strings.NewReader(string(b)))
	if err != nil {
		w.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.http.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		w.Fatalf("%s: %v", text, err)
	}
	return resp.StatusCode, out
}

// load imports a key, and returns its id without version.
func (w *world) load(s fake.Service, name string, key any, p *release.Policy, immutable bool) akv.KeyID {
	w.Helper()
	text, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err != nil {
		w.Fatal(err)
	}
	e, err := release.Seal(p, immutable)
	if err != nil {
		w.Fatal(err)
	}
	status, out := w.call(s, http.MethodPut, "/keys/"+name, map[string]any{
		"key": json.RawMessage(text), "hsm": true, "attributes": map[string]any{"exportable": true}, "release_policy": e,
	})
	if status != http.StatusOK {
		w.Fatalf("import of %s: %d %v", name, status, out)
	}
	return akv.KeyID{Vault: w.fake.URL(s), Name: name}
}

// release attests, and releases a key.
func (w *world) release(id akv.KeyID, s kwp.Scheme) (*akv.Key, error) {
	token, _, err := w.attest(w.Context())
	if err != nil {
		return nil, err
	}
	return w.vault.Release(w.Context(), akv.Ask{Key: id, Token: token, Wrap: s}, w.key)
}

var secret = []byte("0123456789abcdef0123456789abcdef")

// kinds are keys of each kind, with their bytes.
var kinds = sync.OnceValue(func() map[string]any {
	out := map[string]any{"oct128": secret[:16], "oct256": secret}
	for _, bits := range []int{2048, 3072, 4096} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		out[fmt.Sprintf("rsa%d", bits)] = k
	}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			panic(err)
		}
		out["ec"+strings.ReplaceAll(c.Params().Name, "-", "")] = k
	}
	return out
})

func material(t testing.TB, key any) []byte {
	t.Helper()
	if b, ok := key.([]byte); ok {
		return b
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// otherKey is an RSA key that is not the guest's.
var otherKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})
