// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reporter makes evidence of a type: reports of a processor of the test, or sample evidence.
type reporter struct {
	*testing.T
	made *snptest.Made
	tee  string
}

func (r reporter) TEE() string { return r.tee }

func (r reporter) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	if r.tee != "snp" {
		return fmt.Appendf(nil, `{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(data)), nil
	}
	return r.made.Again(r, func(b []byte) { copy(b[0x50:0x90], data) }).Evidence.Report, nil
}

// pod is a pod whose containers ask, and the fakes.
type pod struct {
	*testing.T
	*Endpoints
	fake       *fake.Fake
	policy     *policy.Policy
	maa, vault string
}

func newPod(t *testing.T, tee, more string) *pod {
	t.Helper()
	made := snptest.Make(t, snptest.Spec{Edit: func(b []byte) { clear(b[0x50:0x90]) }})
	var chain []byte
	for _, der := range [][]byte{made.Leaf, made.Middle} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	f, err := fake.New(fake.Options{
		Verifier: &made.Verifier, Now: func() time.Time { return snptest.Now }, Chain: chain, AllowInsecure: true,
		TCB: binary.LittleEndian.Uint64(made.Evidence.Report[0x180:]),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := &pod{T: t, fake: f, maa: host(f.URL(fake.MAA)), vault: host(f.URL(fake.Vault))}
	all := []string{policy.AzureRaw, policy.AzureCombined, policy.AzureOwnKeys}
	azure := policy.Azure{MAA: []string{p.maa}, Calls: all}
	for _, kid := range []string{"oct", "rsa", "absent", "refused"} {
		azure.Keys = append(azure.Keys, policy.AzureKey{KID: kid, Vault: p.vault, MAA: p.maa})
	}
	p.policy = &policy.Policy{Containers: []policy.Container{
		{Name: "a", Workload: policy.Workload{Azure: azure}},
		{Name: "b", Workload: policy.Workload{Azure: policy.Azure{Keys: azure.Keys[1:2]}}},
		{Name: "silent"},
	}}
	cfg, broken := Parse(map[string]string{initdata.FileAzure: fmt.Sprintf(
		"metadata = %q\nattempts = 2\n%s\nca = '''\n%s'''\n", f.URL(fake.Metadata), more, f.CA())})
	p.Endpoints = New(p.policy, cfg, broken, reporter{t, made, tee}, nil)
	t.Cleanup(func() {
		p.Close()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// ask sends a request of a container.
func (p *pod) ask(container int, method, path, body string) (int, map[string]string) {
	p.Helper()
	status, out := p.Answer(p.Context(), &p.policy.Containers[container], method, path, []byte(body))
	m, ok := out.(map[string]string)
	if !ok || (m["error"] != "") == (status == http.StatusOK) {
		p.Errorf("%s: %d %v", path, status, out)
	}
	return status, m
}

// load imports a key whose policy asks for a type of attestation.
func (p *pod) load(name, kind string, key any) {
	p.Helper()
	text, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err != nil {
		p.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.fake.CA())
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, Time: func() time.Time { return snptest.Now },
	}}}
	defer h.CloseIdleConnections()
	c := &azhttp.Client{Service: "vault", HTTP: h}
	token, err := entra.Metadata{Client: c, URL: p.fake.URL(fake.Metadata)}.Token(p.Context(), "https://localhost")
	if err != nil {
		p.Fatal(err)
	}
	rules := fmt.Sprintf(`{"version":"1.0.0","anyOf":[{"authority":"https://%s","allOf":[{"claim":"x-ms-attestation-type",`+
		`"equals":%q}]}]}`, p.maa, kind)
	_, err = c.Do(p.Context(), azhttp.Request{
		Method: http.MethodPut, URL: p.fake.URL(fake.Vault) + "/keys/" + name + "?api-version=7.4",
		Header: map[string]string{"Authorization": "Bearer " + token},
		Body: fmt.Appendf(nil, `{"key":%s,"attributes":{"exportable":true},"release_policy":{"data":%q}}`, text,
			base64.RawURLEncoding.EncodeToString([]byte(rules))),
	})
	if err != nil {
		p.Fatal(err)
	}
}

// release is the body of a request for a key.
func (p *pod) release(kid string) string {
	return fmt.Sprintf(`{"maa_endpoint":%q,"akv_endpoint":%q,"kid":%q}`, p.maa, p.vault, kid)
}

func (p *pod) runtime(data string) string {
	return fmt.Sprintf(`{"maa_endpoint":%q,"runtime_data":%q}`, p.maa, base64.StdEncoding.EncodeToString([]byte(data)))
}

var secret = []byte("0123456789abcdef0123456789abcdef")

// On SEV-SNP every call answers as the sidecar does, with keys as JSON Web Keys.
func TestCallsOfTheSidecar(t *testing.T) {
	p := newPod(t, "snp", "endorsements = ['AQI=']")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"oct": secret, "rsa": rsaKey} {
		p.load(name, "sevsnpvm", key)
		_, out := p.ask(0, http.MethodPost, "/key/release", p.release(name))
		var got jose.JSONWebKey
		if err := got.UnmarshalJSON([]byte(out["key"])); err != nil {
			t.Fatalf("%s: %v %v", name, err, out)
		}
		if b, ok := got.Key.([]byte); ok && !bytes.Equal(b, secret) {
			t.Errorf("%s: %x", name, b)
		}
		if k, ok := got.Key.(*rsa.PrivateKey); ok != (name == "rsa") || ok && !k.Equal(rsaKey) {
			t.Errorf("%s: %T", name, got.Key)
		}
	}
	if _, out := p.ask(0, http.MethodGet, "/status", ""); out["message"] != "Status OK" {
		t.Errorf("status: %v", out)
	}
	_, out := p.ask(0, http.MethodPost, "/attest/raw", p.runtime("any bytes"))
	report, err := hex.DecodeString(out["report"])
	if err != nil || len(report) != 1184 || !bytes.Equal(report[0x70:0x90], make([]byte, 32)) {
		t.Errorf("raw: %v %v", out, err)
	}
	_, out = p.ask(0, http.MethodPost, "/attest/combined", p.runtime("any bytes"))
	if len(out) != 4 || out["uvm_endorsements"] != "AQI=" || len(out["endorsed_tcb"]) != 16 || out["evidence"] == "" {
		t.Errorf("combined: %v", out)
	}
	if chain, err := base64.StdEncoding.DecodeString(out["endorsements"]); err != nil || !bytes.HasPrefix(chain,
		[]byte("-----BEGIN CERTIFICATE")) {
		t.Errorf("combined: %s %v", chain, err)
	}
	if _, out = p.ask(0, http.MethodPost, "/attest/maa", p.runtime(`{"keys":[]}`)); strings.Count(out["token"], ".") != 2 {
		t.Errorf("maa: %v", out)
	}
}

// Each row is a request that is refused, with its status and a part of its reason.
func TestRefusals(t *testing.T) {
	p := newPod(t, "snp", "")
	p.load("refused", "tdxvm", secret)
	const post = http.MethodPost
	with := func(old, other string) string { return strings.Replace(p.release("rsa"), old, other, 1) }
	for _, tc := range []struct {
		of                 int
		method, path, body string
		status             int
		reason             string
	}{
		{0, http.MethodGet, "/key/release", "", 405, "asked for with POST"},
		{0, post, "/status", "", 405, "asked for with GET"},
		{0, post, "/key/release", "{", 400, "invalid request format"},
		{0, post, "/key/release", "{}", 400, "is missing"},
		{0, post, "/key/release", with(`"rsa"`, `""`), 400, "kid is missing"},
		{0, post, "/attest/raw", `{"runtime_data":"%"}`, 400, "decoding base64-encoded runtime data"},
		{0, post, "/attest/raw", "{}", 400, "runtime_data is missing"},
		{0, post, "/attest/maa", p.runtime("no JSON"), 400, "runtime_data is not JSON"},
		{0, post, "/attest/maa", `{"maa_endpoint":"169.254.169.254","runtime_data":"e30="}`, 403, "does not name the attestation"},
		{0, post, "/key/release", p.release("absent"), 403, "404 Not Found: KeyNotFound"},
		{0, post, "/key/release", p.release("refused"), 403, "x-ms-attestation-type equals tdxvm: it is sevsnpvm"},
		{0, post, "/key/release", p.release("other"), 403, `does not open key "other"`},
		{0, post, "/key/release", with(p.vault, "169.254.169.254"), 403, `of "169.254.169.254"`},
		{0, post, "/key/release", with(p.vault, p.vault+"/../x?y"), 403, "does not open key"},
		{0, post, "/key/release", with(p.vault, "user@"+p.vault), 403, "does not open key"},
		{0, post, "/key/release", with(p.maa, p.vault), 403, "does not open key"},
		{0, post, "/key/release", with(`}`, `,"access_token":"a b"}`), 403, "characters that no token has"},
		{1, post, "/key/release", p.release("oct"), 403, `does not open key "oct"`},
		{1, post, "/attest/raw", p.runtime("x"), 404, "does not open /attest/raw to container b"},
		{1, post, "/attest/combined", p.runtime("x"), 404, "does not open /attest/combined to container b"},
		{1, post, "/attest/maa", p.runtime("{}"), 404, "does not open /attest/maa to container b"},
		{2, http.MethodGet, "/status", "", 404, "does not open /status to container silent"},
		{2, post, "/key/release", p.release("oct"), 404, "does not open /key/release to container silent"},
	} {
		status, out := p.ask(tc.of, tc.method, tc.path, tc.body)
		if status != tc.status || !strings.Contains(out["error"], tc.reason) {
			t.Errorf("%s %s: %d %v, want %d %q", tc.path, tc.body, status, out, tc.status, tc.reason)
		}
	}
}

// Off SNP no report is made up, and evidence that proves nothing leaves the guest with "insecure" only.
func TestOtherPlatforms(t *testing.T) {
	for _, tee := range []string{"sample", "tpm"} {
		p := newPod(t, tee, "")
		for _, path := range []string{"/attest/raw", "/attest/combined", "/attest/maa"} {
			if status, out := p.ask(0, http.MethodPost, path, p.runtime("{}")); status != http.StatusNotImplemented {
				t.Errorf("%s on %s: %d %v", path, tee, status, out)
			}
		}
		if status, out := p.ask(0, http.MethodPost, "/key/release", p.release("oct")); status != http.StatusNotImplemented ||
			!strings.Contains(out["error"], "evidence is of type "+tee) {
			t.Errorf("release on %s: %d %v", tee, status, out)
		}
		if n := p.fake.Asked(fake.MAA); n != 0 {
			t.Errorf("%d requests to the attestation service", n)
		}
	}
	p := newPod(t, "sample", "insecure = true")
	p.load("oct", "sevsnpvm", secret)
	p.load("rsa", "insecure", secret)
	if _, out := p.ask(0, http.MethodPost, "/key/release", p.release("oct")); !strings.Contains(out["error"],
		"equals sevsnpvm: it is insecure") {
		t.Errorf("a real policy: %v", out)
	}
	if status, out := p.ask(0, http.MethodPost, "/key/release", p.release("rsa")); status != http.StatusOK {
		t.Errorf("an insecure policy: %v", out)
	}
	p.attester, p.noReport = nil, errors.New("no device")
	if status, _ := p.ask(0, http.MethodPost, "/attest/raw", p.runtime("{}")); status != http.StatusNotImplemented {
		t.Errorf("without evidence: %d", status)
	}
}

// A bearer token of the request is sent in place of the metadata service's.
func TestTheCallersBearerToken(t *testing.T) {
	p := newPod(t, "snp", "")
	p.load("oct", "sevsnpvm", secret)
	before := p.fake.Asked(fake.Metadata)
	body := strings.Replace(p.release("oct"), "}", `,"access_token":"not.of.entra"}`, 1)
	status, out := p.ask(0, http.MethodPost, "/key/release", body)
	if status != http.StatusForbidden || !strings.Contains(out["error"], "401") || p.fake.Asked(fake.Metadata) > before+1 {
		t.Errorf("%d %v, and the metadata service was asked %d times", status, out, p.fake.Asked(fake.Metadata)-before)
	}
	if strings.Contains(fmt.Sprint(out), "not.of.entra") {
		t.Error("the error has the token")
	}
}

// A fault in azure.toml is named, and every call but the status answers with it.
func TestConfig(t *testing.T) {
	p := newPod(t, "snp", "")
	ca := "ca = '''\n" + string(p.fake.CA()) + "'''\n"
	for text, want := range map[string]string{
		"":                                 "there is no certificate in PEM",
		ca + "unknown = 1":                 "coco does not know unknown",
		ca + "timeout = '1ms'":             "timeout",
		ca + "attempts = 99":               "attempts: 99",
		ca + "metadata = 'x'":              "metadata",
		ca + "cert_cache = 'http://x'":     "cert_cache",
		ca + "endorsements = ['%']":        "endorsements[0]",
		"ca = '":                           "azure.toml",
		ca + "client_id = 'x'\ninsecure=1": "insecure",
	} {
		_, err := Parse(map[string]string{initdata.FileAzure: text})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "azure.toml: ") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	_, broken := Parse(nil)
	e := New(p.policy, Config{}, broken, nil, nil)
	defer e.Close()
	for path, want := range map[string]int{"/status": 200, "/attest/raw": 500, "/key/release": 500} {
		method := http.MethodPost
		if path == "/status" {
			method = http.MethodGet
		}
		status, out := e.Answer(t.Context(), &p.policy.Containers[0], method, path, nil)
		if status != want || want == 500 && !strings.Contains(fmt.Sprint(out), "initdata has no azure.toml") {
			t.Errorf("%s: %d %v", path, status, out)
		}
	}
}
