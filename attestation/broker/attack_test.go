// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/attestation/broker/session"
	"github.com/coco-shim/coco/attestation/broker/token"
	"github.com/coco-shim/coco/attestation/kbs"
)

// forge makes a token with any header and any signature.
func forge(t testing.TB, header, claims string, sign func([]byte) []byte) string {
	t.Helper()
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(claims))
	return text + "." + b64.EncodeToString(sign([]byte(text)))
}

// badTokens are tokens that no administrator has.
func (w *world) badTokens(t *testing.T) map[string]string {
	t.Helper()
	claims := func(exp int64, aud, iss string) string {
		return fmt.Sprintf(`{"iss":%q,"aud":%q,"role":"admin","exp":%d,"iat":%d}`, iss, aud, exp, w.clock.now().Unix())
	}
	now := w.clock.now().Unix()
	good := claims(now+3600, adminAudience, adminIssuer)
	key := w.b.admin.Set().Keys[0]
	public, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	hs := func(secret []byte) func([]byte) []byte {
		return func(b []byte) []byte { h := hmac.New(sha256.New, secret); h.Write(b); return h.Sum(nil) }
	}
	foreign, err := token.NewKey(w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	stranger := &token.Signer{Issuer: adminIssuer, Now: w.clock.now}
	stranger.SetKeys([]*token.Key{foreign})
	sign := func(s *token.Signer, claims map[string]any, life time.Duration) string {
		text, err := s.Sign(claims, life)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	admin := func(aud string) map[string]any { return map[string]any{"aud": aud, "role": AdminRole} }
	guest, err := w.client(nil).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dot := strings.IndexByte(w.admin, '.')
	kid := fmt.Sprintf(`{"alg":"HS256","kid":%q}`, key.KeyID)
	return map[string]string{
		"none":                "",
		"garbage":             "x.y.z",
		"foreign key":         sign(stranger, admin(adminAudience), time.Hour),
		"expired":             sign(w.b.admin, admin(adminAudience), -time.Hour),
		"wrong audience":      sign(w.b.admin, admin("KBS"), time.Hour),
		"no audience":         sign(w.b.admin, map[string]any{"role": AdminRole}, time.Hour),
		"alg none":            forge(t, `{"alg":"none"}`, good, func([]byte) []byte { return nil }),
		"alg None":            forge(t, `{"alg":"None"}`, good, func([]byte) []byte { return nil }),
		"HS256 with the key":  forge(t, kid, good, hs(public)),
		"HS256 with nothing":  forge(t, kid, good, hs(nil)),
		"signature cut off":   w.admin[:strings.LastIndexByte(w.admin, '.')+1],
		"a guest's token":     guest.JWT,
		"by the token's key":  sign(w.b.signer, admin(adminAudience), time.Hour),
		"key in its header":   embedded(t, good),
		"another alg":         base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES384"}`)) + w.admin[dot:],
		"endless":             strings.Repeat("a", 100<<10),
		"never expires":       w.another(t, fmt.Sprintf(`{"iss":%q,"aud":%q,"role":"admin"}`, adminIssuer, adminAudience)),
		"not valid yet":       w.another(t, good[:len(good)-1]+fmt.Sprintf(`,"nbf":%d}`, now+600)),
		"another issuer":      w.another(t, claims(now+3600, adminAudience, "x")),
		"claims were changed": changed(w.admin),
	}
}

// embedded is a token that brings its own key.
func embedded(t testing.TB, claims string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, k, claims, &jose.SignerOptions{EmbedJWK: true})
}

// another signs claims with the administrators' key, which lacks what Sign adds, or has it otherwise.
func (w *world) another(t testing.TB, claims string) string {
	t.Helper()
	der, _, err := w.b.cfg.Store.Get(bucketAdminKey, w.b.cfg.Store.List(bucketAdminKey)[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, k, claims, nil)
}

// signed is a JWS of any text.
func signed(t testing.TB, k any, claims string, opts *jose.SignerOptions) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k}, opts)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func changed(text string) string {
	parts := strings.Split(text, ".")
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(claims, []byte("admin"), []byte("Admin"), 1))
	return strings.Join(parts, ".")
}

// Each route of administrators refuses each bad token with 401, and changes nothing.
func TestRoutesOfAdministrators(t *testing.T) {
	w := begin(t, true, nil)
	bad := w.badTokens(t)
	routes := 0
	for route := range w.b.adminRoutes() {
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer(
			"{path...}", password, "{id}", "default_cpu", "{name...}", "init_data", "{set}", "default",
		).Replace(path)
		for name, tok := range bad {
			s, text := w.ask(method, path, tok, []byte(`{}`))
			if e := kbs.ParseError(s, text); s != http.StatusUnauthorized || e.Type != kbs.AdminAuthAccess {
				t.Errorf("%s with token %s: %d %s", route, name, s, text)
			}
		}
		routes++
	}
	if routes < 14 {
		t.Errorf("%d routes", routes)
	}
	if got, err := w.client(nil).Resource(t.Context(), password); err != nil || string(got) != "a secret" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// The guests' route refuses each bad token, and those of administrators.
func TestRouteOfResources(t *testing.T) {
	w := begin(t, true, nil)
	bad := w.badTokens(t)
	delete(bad, "a guest's token")
	bad["an administrator's"] = w.admin
	guest, err := w.b.signer.Sign(map[string]any{"submods": map[string]any{}}, -time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	bad["expired guest's"] = guest
	delete(bad, "by the token's key")
	for name, tok := range bad {
		s, text := w.ask("GET", "/kbs/v0/resource/"+password, tok, nil)
		e := kbs.ParseError(s, text)
		if s != http.StatusUnauthorized || e.Type != kbs.TokenVerifierError && (tok != "" || e.Type != kbs.TokenNotFound) {
			t.Errorf("%s: %d %s", name, s, text)
		}
	}
	// A token that the broker has signed for something else names no status, and no key.
	text, err := w.b.signer.Sign(map[string]any{"submods": map[string]any{}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if s, got := w.ask("GET", "/kbs/v0/resource/"+password, text, nil); s != http.StatusForbidden {
		t.Errorf("without evidence: %d %s", s, got)
	}
}

func TestRoles(t *testing.T) {
	w := begin(t, true, func(c *Config) {
		c.Roles = []Role{{"team-a", []string{"(POST|DELETE) /kbs/v0/resource/team-a/[^/]+/[^/]+"}}, {"none", nil}}
	})
	for role, paths := range map[string]map[string]int{
		"team-a": {
			"POST /kbs/v0/resource/team-a/x/y": 200, "POST /kbs/v0/resource/team-b/x/y": 403,
			"POST /kbs/v0/resource/team-a/x/y/z": 403, "GET /kbs/v0/admin/resources": 403,
			"POST /kbs/v0/resource-policy": 403, "DELETE /kbs/v0/resource/team-a/x/y": 200,
		},
		"none": {"POST /kbs/v0/resource/team-a/x/y": 403},
	} {
		tok, err := w.b.AdminToken(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{"POST", "GET", "DELETE"} { // in an order that makes before it removes
			for route, want := range paths {
				if method, path, _ := strings.Cut(route, " "); method == m {
					if s, text := w.ask(method, path, tok, []byte("x")); s != want {
						t.Errorf("%s: %s: %d %s, want %d", role, route, s, text, want)
					}
				}
			}
		}
	}
	if _, err := w.b.AdminToken("unknown"); err == nil {
		t.Error("a token for a role that is not there")
	}
	for _, bad := range [][]Role{{{"admin", nil}}, {{"", nil}}, {{"a", []string{"("}}}, {{"a", nil}, {"a", nil}}} {
		if _, err := newAccess(w.b.admin, Config{Roles: bad}); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

// handshake is a session with its evidence, for tests that send it in other ways.
type handshake struct {
	cookie, nonce string
	message       []byte
}

func (w *world) auth(t testing.TB) (cookie, nonce string) {
	t.Helper()
	body := strings.NewReader(`{"version":"0.4.0","tee":"snp","extra-params":""}`)
	req, err := http.NewRequest("POST", w.srv.URL+"/kbs/v0/auth", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var c kbs.Challenge
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || len(resp.Cookies()) != 1 {
		t.Fatalf("%v, %d", err, resp.StatusCode)
	}
	return kbs.Cookie + "=" + resp.Cookies()[0].Value, c.Nonce
}

// prepare opens a session, and makes the message with its evidence.
func (w *world) prepare(t testing.TB) handshake {
	t.Helper()
	h := handshake{}
	h.cookie, h.nonce = w.auth(t)
	h.message = w.message(t, h.nonce)
	return h
}

func (w *world) message(t testing.TB, nonce string) []byte {
	t.Helper()
	k, err := kbs.NewKey(kbs.P256)
	if err != nil {
		t.Fatal(err)
	}
	m := kbs.Attestation{Nonce: nonce, Key: k.Public(), InitData: string(w.doc.Text)}
	d, err := m.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Primary, err = (attester{w: w}).Evidence(t.Context(), d[:]); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (w *world) attest(cookie string, message []byte) (int, string) {
	s, text := w.ask("POST", "/kbs/v0/attest", "", message, "Cookie", cookie)
	return s, string(text)
}

func TestNoncesServeOnce(t *testing.T) {
	w := begin(t, true, nil)
	h := w.prepare(t)
	s, first := w.attest(h.cookie, h.message)
	if s != 200 {
		t.Fatalf("%d %s", s, first)
	}
	if s, again := w.attest(h.cookie, h.message); s != 200 || again != first {
		t.Errorf("the same message: %d %s, want the same token", s, again)
	}
	if s, text := w.attest(h.cookie, w.message(t, h.nonce)); s != http.StatusConflict {
		t.Errorf("other evidence: %d %s", s, text)
	}
	if s, _ := w.ask("GET", "/kbs/v0/resource/"+password, "", nil, "Cookie", h.cookie); s != 200 {
		t.Errorf("the cookie alone: %d", s)
	}
	h = w.prepare(t)
	bad := bytes.Replace(h.message, []byte(`"guest_svn":0`), []byte(`"guest_svn":1`), 1)
	if s, text := w.attest(h.cookie, bad); s != http.StatusForbidden {
		t.Errorf("a changed report: %d %s", s, text)
	}
	if s, text := w.attest(h.cookie, h.message); s != http.StatusConflict {
		t.Errorf("good evidence after bad one: %d %s", s, text)
	}
}

func TestForeignSessions(t *testing.T) {
	w := begin(t, true, nil)
	a, b := w.prepare(t), w.prepare(t)
	if s, text := w.attest(b.cookie, a.message); s != http.StatusForbidden || !strings.Contains(text, "nonce") {
		t.Errorf("swapped cookie: %d %s", s, text)
	}
	for name, cookie := range map[string]string{"none": "", "unknown": kbs.Cookie + "=" + strings.Repeat("0", 32)} {
		if s, text := w.attest(cookie, a.message); s != http.StatusUnauthorized || !strings.Contains(text, "session") {
			t.Errorf("%s: %d %s", name, s, text)
		}
	}
	w.clock.move(session.DefaultLife)
	if s, text := w.attest(a.cookie, a.message); s != http.StatusUnauthorized {
		t.Errorf("expired: %d %s", s, text)
	}
}

func TestChangedMessages(t *testing.T) {
	w := begin(t, true, nil)
	for name, tc := range map[string]struct {
		from, to string
		want     int
	}{
		"JWK with another member": {`"kty":"EC"`, `"kid":"1","kty":"EC"`, 400},
		"devices that no one has": {`"additional_evidence":""`, `"additional_evidence":"{\"nvidia\":{}}"`, 403},
		"devices that are none":   {`"additional_evidence":""`, `"additional_evidence":"{}"`, 403}, // the digest covers it
		"initdata of another":     {`a policy`, `b policy`, 403},
		"no evidence":             {`"attestation_report"`, `"other"`, 403},
		"version 9":               {`"version":3`, `"version":9`, 403},
		"no JSON":                 {`{`, `[`, 400},
		"member twice":            {`"runtime-data"`, `"runtime-data":{},"runtime-data"`, 400},
	} {
		h := w.prepare(t)
		bad := strings.Replace(string(h.message), tc.from, tc.to, 1)
		if bad == string(h.message) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if s, text := w.attest(h.cookie, []byte(bad)); s != tc.want || kbs.ParseError(s, []byte(text)).Type == "" {
			t.Errorf("%s: %d %s, want %d", name, s, text, tc.want)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	w := begin(t, true, nil)
	long := bytes.Repeat([]byte("x"), kbs.MaxBody+1)
	for name, tc := range map[string]struct {
		method, path, token string
		body                []byte
		want                int
	}{
		"version":          {"POST", "/kbs/v0/auth", "", []byte(`{"version":"0.1.1","tee":"snp"}`), 400},
		"TEE":              {"POST", "/kbs/v0/auth", "", []byte(`{"version":"0.4.0","tee":"sgx"}`), 400},
		"TPM without a CA": {"POST", "/kbs/v0/auth", "", []byte(`{"version":"0.4.0","tee":"tpm"}`), 400},
		"no JSON":          {"POST", "/kbs/v0/auth", "", []byte(`x`), 400},
		"long auth":        {"POST", "/kbs/v0/auth", "", long, 413},
		"long attest":      {"POST", "/kbs/v0/attest", "", long, 413},
		"long resource":    {"POST", "/kbs/v0/resource/a/b/c", w.admin, long, 413},
		"longest resource": {"POST", "/kbs/v0/resource/a/b/c", w.admin, long[1:], 200},
		"long policy":      {"POST", "/kbs/v0/resource-policy", w.admin, long, 413},
		"empty resource":   {"POST", "/kbs/v0/resource/a/b/c", w.admin, nil, 400},
		"short path":       {"POST", "/kbs/v0/resource/a/b", w.admin, []byte("x"), 404},
		"no route":         {"GET", "/other", "", nil, 404},
		"method":           {"PUT", "/kbs/v0/auth", "", nil, 404},
		"absent":           {"DELETE", "/kbs/v0/resource/a/b/none", w.admin, nil, 404},
		"no reference":     {"GET", "/kbs/v0/reference-value/none", w.admin, nil, 404},
		"bad reference":    {"POST", "/kbs/v0/reference-value", w.admin, []byte(`{"type":"corim"}`), 400},
		"health":           {"GET", "/healthz", "", nil, 200},
	} {
		s, text := w.ask(tc.method, tc.path, tc.token, tc.body)
		if s != tc.want || s != 200 && kbs.ParseError(s, text).Type == "" {
			t.Errorf("%s: %d %s, want %d", name, s, text, tc.want)
		}
	}
	w.must("POST", "/kbs/v0/resource/a/b/d", []byte("x"))
	for _, tc := range []struct {
		match string
		want  int
	}{{`"0"`, 409}, {`"7"`, 409}, {"x", 400}, {`"1"`, 200}, {`"1"`, 409}} {
		s, text := w.ask("POST", "/kbs/v0/resource/a/b/d", w.admin, []byte("y"), "If-Match", tc.match)
		if s != tc.want {
			t.Errorf("If-Match %s: %d %s, want %d", tc.match, s, text, tc.want)
		}
	}
}

// Sessions are bounded, altogether and for each address, and idle ones cost little.
func TestIdleSessions(t *testing.T) {
	w := begin(t, true, func(c *Config) { c.MaxSessions = 40000 })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 10000 {
		if _, err := w.b.sessions.Open("snp", "10.0.0.1"); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 8<<20 {
		t.Errorf("10000 sessions take %d bytes", n)
	}
	if _, err := w.b.sessions.Open("snp", "10.0.0.1"); err != session.ErrMany { //nolint:errorlint // it is returned as it is
		t.Errorf("one more of that address: %v", err)
	}
	for i := range 30000 {
		if _, err := w.b.sessions.Open("snp", fmt.Sprint(i%7)); err != nil {
			t.Fatal(err)
		}
	}
	s, text := w.ask("POST", "/kbs/v0/auth", "", []byte(`{"version":"0.4.0","tee":"snp"}`))
	if s != http.StatusServiceUnavailable || kbs.ParseError(s, text).Type != kbs.AttestationError {
		t.Errorf("%d %s", s, text)
	}
	w.clock.move(session.DefaultLife)
	if n := w.b.sessions.Size(); n != 0 {
		t.Errorf("%d sessions after their end", n)
	}
	if _, err := w.client(nil).Resource(t.Context(), password); err != nil {
		t.Error(err)
	}
}
