// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy/rego"
)

const password = "default/db/password"

func TestSecretsAreReleased(t *testing.T) {
	w := begin(t, true, nil)
	for _, k := range []kbs.Kind{kbs.P256, kbs.P521, kbs.RSA} {
		got, err := w.client(func(c *client.Config) { c.Key = k }).Resource(t.Context(), password)
		if err != nil || string(got) != "a secret" {
			t.Errorf("%s: %q, %v", k, got, err)
		}
	}
	text, err := os.ReadFile(w.audit)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := audit.Verify(bytes.NewReader(text)); err != nil || r.Head.Number < 8 {
		t.Errorf("audit: %v, %v", r, err)
	}
	for name, b := range map[string][]byte{"audit": text, "log": w.log.Bytes()} {
		if bytes.Contains(b, []byte("a secret")) || bytes.Contains(b, []byte("eyJ")) {
			t.Errorf("the %s has a secret or a token: %s", name, b)
		}
	}
}

// Each guest here differs in one thing from one that gets the secret. The reason says in which.
func TestGuestsThatGetNothing(t *testing.T) {
	other, err := initdata.New("sha256", map[string]string{"policy.coco": "another policy"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		edit   func([]byte)
		config func(*client.Config)
		want   client.Reason
		says   string // in the broker's list of attestations, or in the answer

		minimum int // of the SNP firmware
	}{
		"another launch digest": {
			edit: func(r []byte) { r[0x90] ^= 1 }, want: client.Denied, says: "executables is warning (33)",
		},
		"a patch level that is not in the certificate": {
			edit: func(r []byte) { r[0x180+6] = 23 }, want: client.Refused, says: "certificate.tcb",
		},
		"a patch level below the minimum": {
			want: client.Denied, says: "hardware is contraindicated (97)", minimum: 25,
		},
		"debugging":        {edit: func(r []byte) { r[8+2] |= 1 << 3 }, want: client.Refused, says: "debug"},
		"another VMPL":     {edit: func(r []byte) { r[0x30] = 1 }, want: client.Refused, says: "vmpl"},
		"other REPORTDATA": {edit: func(r []byte) { r[0x50] ^= 1 }, want: client.Refused, says: "report-data"},
		"REPORTDATA with a tail": {
			edit: func(r []byte) { r[0x50+48] = 1 }, want: client.Refused, says: "report-data",
		},
		"initdata that is not in the report": {
			config: func(c *client.Config) { c.InitData = string(other.Text) }, want: client.Refused, says: "init",
		},
		"initdata that no one knows": {
			edit:   func(r []byte) { copy(r[0xC0:0xE0], other.Digest()) },
			config: func(c *client.Config) { c.InitData = string(other.Text) }, want: client.Denied,
			says: "configuration is warning (36)",
		},
		"no initdata": {
			edit: func(r []byte) { clear(r[0xC0:0xE0]) }, config: func(c *client.Config) { c.InitData = "" },
			want: client.Denied, says: "configuration is warning (36)",
		},
		"initdata that cannot be read": {
			config: func(c *client.Config) { c.InitData = "x" }, want: client.Refused, says: "initdata",
		},
	} {
		w := begin(t, true, nil)
		if tc.minimum > 0 {
			payload := fmt.Appendf(nil, `{"snp_minimum_tcb":{"Milan":{"snp":%d}}}`, tc.minimum)
			text := base64.StdEncoding.EncodeToString(payload)
			w.must("POST", "/kbs/v0/reference-value", fmt.Appendf(nil, `{"type":"sample","payload":%q}`, text))
		}
		got, err := w.client(func(c *client.Config) {
			c.Attester = attester{w, tc.edit}
			if tc.config != nil {
				tc.config(c)
			}
		}).Resource(t.Context(), password)
		r, text := reason(err)
		list := string(w.must("GET", "/kbs/v0/admin/attestations", nil))
		if got != nil || r != tc.want || !strings.Contains(text+list, tc.says) {
			t.Errorf("%s: %q, %s, want %s and %q; the broker says %s", name, got, text, tc.want, tc.says, list)
		}
	}
}

func TestNothingIsReleasedByDefault(t *testing.T) {
	w := begin(t, false, nil)
	got, err := w.client(nil).Resource(t.Context(), password)
	if r, text := reason(err); got != nil || r != client.Denied {
		t.Errorf("%q, %s", got, text)
	}
	if _, err := w.client(func(c *client.Config) { c.Attester = sample{} }).Resource(t.Context(), password); err == nil ||
		!strings.Contains(err.Error(), "--allow-insecure") {
		t.Errorf("sample: %v", err)
	}
}

// sample is a guest without a TEE.
type sample struct{}

func (sample) TEE() string { return "sample" }

func (sample) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	return json.Marshal(map[string]string{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(digest)})
}

// Sample evidence needs the switch and reference values, and token and log say what it is.
func TestInsecureEvidenceIsNamed(t *testing.T) {
	w := begin(t, true, func(c *Config) { c.Evidence.AllowInsecure = true })
	c := w.client(func(c *client.Config) { c.Attester = sample{} })
	if _, err := c.Resource(t.Context(), password); err == nil {
		t.Error("released without reference values")
	}
	payload := base64.StdEncoding.EncodeToString([]byte(`{"launch_digest":["abcde"],"svn":["1"]}`))
	w.must("POST", "/kbs/v0/reference-value", fmt.Appendf(nil, `{"type":"sample","payload":%q}`, payload))
	tok, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Resource(t.Context(), password); err != nil || string(got) != "a secret" {
		t.Errorf("%q, %v", got, err)
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(tok.JWT, ".")[1])
	if err != nil || !bytes.Contains(claims, []byte("insecure: sample evidence proves nothing")) {
		t.Errorf("%s, %v", claims, err)
	}
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "tee=sample") && !strings.Contains(line, "insecure: sample") {
			t.Errorf("log line without a warning: %s", line)
		}
	}
}

// Whether a resource exists shows only to those who may have it.
func TestDeniedAndAbsentLookAlike(t *testing.T) {
	w := begin(t, false, nil)
	tok, err := w.client(nil).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	status, text := w.ask("GET", "/kbs/v0/resource/"+password, tok.JWT, nil)
	for _, path := range []string{"resource/default/db/none", "resource/x", "resource/a/b/../c", "pkcs11/x", "x/y"} {
		s, got := w.ask("GET", "/kbs/v0/"+path, tok.JWT, nil)
		if s != status || !bytes.Equal(got, text) || status != http.StatusForbidden {
			t.Errorf("%s: %d %s, and for one that exists %d %s", path, s, got, status, text)
		}
	}
	w.must("POST", "/kbs/v0/reference-value", w.references(nil))
	if tok, err = w.client(nil).Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]kbs.ErrorType{
		"resource/default/db/none": kbs.PluginInternal, "resource/x": kbs.InvalidRequestPath,
	} {
		s, got := w.ask("GET", "/kbs/v0/"+path, tok.JWT, nil)
		if e := kbs.ParseError(s, got); s != http.StatusNotFound || e.Type != want {
			t.Errorf("%s: %d %s", path, s, got)
		}
	}
	_, err = w.client(nil).Resource(t.Context(), "default/db/none")
	if r, text := reason(err); r != client.NotFound {
		t.Errorf("%s", text)
	}
}

func TestPoliciesDecide(t *testing.T) {
	w := begin(t, true, nil)
	c := w.client(nil)
	if _, err := c.Resource(t.Context(), password); err != nil {
		t.Fatal(err)
	}
	set := func(kind rego.Kind, text string) (int, []byte) {
		body, err := json.Marshal(policyMessage{"rego", "default_cpu", base64.URLEncoding.EncodeToString([]byte(text))})
		if err != nil {
			t.Fatal(err)
		}
		return w.ask("POST", "/kbs/v0/"+string(kind)+"-policy", w.admin, body)
	}
	const evidence = "input.submods.cpu0[\"ear.veraison.annotated-evidence\"]"
	for text, want := range map[string]bool{
		"allow if data[\"resource-path\"][1] == \"db\"":                  true,
		"allow if data[\"resource-path\"][1] == \"no\"":                  false,
		"allow if " + evidence + ".snp.product == \"Milan\"":             true,
		"allow if " + evidence + ".init_data_claims[\"aa.toml\"].x == 1": true,
	} {
		if s, got := set(rego.Resource, "package policy\n"+text); s != 200 {
			t.Errorf("%s: %d %s", text, s, got)
		}
		if _, err := c.Resource(t.Context(), password); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, bad := range []string{"package policy\nallowed := true", "package policy\nallow {", "x"} {
		if s, got := set(rego.Resource, bad); s != 400 || kbs.ParseError(s, got).Type != kbs.ParsePolicyError {
			t.Errorf("%s: %d %s", bad, s, got)
		}
	}
	s, got := set(rego.Attestation,
		"package policy\ntrust_claims := {\"hardware\": 2} if query_reference_value(\"no\") == 1")
	if s != 200 || !bytes.Contains(got, []byte(`there is no reference value`)) {
		t.Errorf("%d %s", s, got)
	}
	_, err := w.client(nil).Resource(t.Context(), password)
	if r, text := reason(err); r != client.Refused || !strings.Contains(text, "no opinion") {
		t.Errorf("%s", text)
	}
}

// During an update two sets stand side by side; what-if names who needs the old one, and its end is told by its name.
func TestSetsOfReferenceValues(t *testing.T) {
	w := begin(t, false, nil)
	w.must("POST", "/kbs/v0/reference-value", w.references(map[string]any{
		"set": "release-6", "expires": snptest.Now.Add(time.Hour),
	}))
	next := base64.StdEncoding.EncodeToString([]byte(`{"snp_launch_measurement":["00"]}`))
	w.must("POST", "/kbs/v0/reference-value", fmt.Appendf(nil, `{"type":"sample","payload":%q,"set":"release-7"}`, next))
	c := w.client(nil)
	if _, err := c.Resource(t.Context(), password); err != nil {
		t.Fatal(err)
	}
	var out answer
	text := w.must("POST", "/kbs/v0/admin/what-if", []byte(`{"without_set":"release-6"}`))
	if err := json.Unmarshal(text, &out); err != nil || out.Looked != 1 || out.Losing != 1 || len(out.Changes) != 1 ||
		out.Changes[0].Loses[0] != "resource/"+password || !strings.Contains(out.Changes[0].Because, "executables") {
		t.Errorf("%s, %v", text, err)
	}
	text = w.must("POST", "/kbs/v0/admin/what-if", []byte(`{"without_set":"release-7"}`))
	if err := json.Unmarshal(text, &out); err != nil || len(out.Changes) != 0 {
		t.Errorf("%s, %v", text, err)
	}
	w.clock.move(61 * time.Minute)
	_, err := w.client(nil).Resource(t.Context(), password)
	list := w.must("GET", "/kbs/v0/admin/attestations", nil)
	const says = `set \"release-6\" of reference values has its values and has expired`
	if r, _ := reason(err); r != client.Denied || !bytes.Contains(list, []byte(says)) {
		t.Errorf("%v; %s", err, list)
	}
}

func TestCheck(t *testing.T) {
	w := begin(t, true, nil)
	ev, err := attester{w: w}.Evidence(t.Context(), make([]byte, 48))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"tee": "snp", "evidence": ev, "init_data": string(w.doc.Text)})
	if err != nil {
		t.Fatal(err)
	}
	if text := w.must("POST", "/kbs/v0/admin/check", body); !bytes.Contains(text, []byte(`"status":"affirming"`)) {
		t.Errorf("%s", text)
	}
	bad := bytes.Replace(body, []byte(`"guest_svn":0`), []byte(`"guest_svn":1`), 1)
	if text := w.must("POST", "/kbs/v0/admin/check", bad); !bytes.Contains(text, []byte(`"code":"signature"`)) {
		t.Errorf("%s", text)
	}
}

// A new start finds everything again: keys, secrets, policies and reference values.
func TestRestart(t *testing.T) {
	w := begin(t, true, nil)
	tok, err := w.client(nil).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), w.b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.srv.Config.Handler = again.Handler()
	w.b = again
	if s, _ := w.ask("GET", "/kbs/v0/resource/"+password, tok.JWT, nil); s != 200 {
		t.Errorf("a token of before the start: %d", s)
	}
	if _, err := w.client(nil).Resource(t.Context(), password); err != nil {
		t.Error(err)
	}
	w.must("GET", "/kbs/v0/admin/resources", nil) // the administrator's token too
}

func TestKeysRotate(t *testing.T) {
	w := begin(t, true, nil)
	keys := func() int { return len(w.b.signer.Set().Keys) }
	old, err := w.client(nil).Token(t.Context())
	if err != nil || keys() != 1 {
		t.Fatal(err)
	}
	w.clock.move(rotateAt)
	if err := w.b.Rotate(); err != nil || keys() != 2 {
		t.Errorf("%d keys, %v", keys(), err)
	}
	w.clock.move(-time.Minute)
	if s, _ := w.ask("GET", "/kbs/v0/resource/"+password, old.JWT, nil); s != http.StatusUnauthorized {
		t.Errorf("an expired token: %d", s)
	}
	w.clock.move(time.Minute)
	for range 3 {
		w.clock.move(rotateAt)
		if err := w.b.Rotate(); err != nil || keys() > 3 {
			t.Errorf("%d keys, %v", keys(), err)
		}
	}
}
