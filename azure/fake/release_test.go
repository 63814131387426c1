// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/release"
)

func TestEachKindOfKeyIsReleased(t *testing.T) {
	w := newWorld(t, nil)
	p := w.policy(nil)
	for _, name := range slices.Sorted(maps.Keys(kinds())) {
		key := kinds()[name]
		for _, s := range []fake.Service{fake.Vault, fake.HSM} {
			id := w.load(s, name, key, p, false)
			for _, scheme := range []kwp.Scheme{kwp.RSAAES, kwp.RSAAES256, kwp.RSAAES384} {
				got, err := w.release(id, scheme)
				if err != nil {
					t.Fatalf("%s %s %s: %v", s, name, scheme, err)
				}
				if !bytes.Equal(got.Material, material(t, key)) || got.Clock != "guest" {
					t.Errorf("%s %s %s: another key", s, name, scheme)
				}
				got.Wipe()
				if !bytes.Equal(got.Material, make([]byte, len(got.Material))) {
					t.Error("the key is not wiped")
				}
			}
		}
	}
}

// negative is a release that must be refused.
type negative struct {
	name   string
	policy func(authority *string, conds []map[string]any)
	report func([]byte)
	fault  fake.Fault
	// swap unwraps by another key than the token is bound to.
	swap   bool
	ask    func(*akv.KeyID)
	reason string
}

func cond(i int, v any) func(*string, []map[string]any) {
	return func(_ *string, conds []map[string]any) {
		for k := range conds[i] {
			if k != "claim" {
				conds[i][k] = v
			}
		}
	}
}

var negatives = []negative{
	{name: "other host data", policy: cond(1, "00"), reason: "x-ms-sevsnpvm-hostdata equals 00: it is 4041"},
	{name: "other measurement", policy: cond(2, "00"), reason: "x-ms-sevsnpvm-launchmeasurement equals 00: it is 0102"},
	{name: "older guest", policy: cond(5, 7), reason: "x-ms-sevsnpvm-guestsvn greaterOrEquals 7: it is 0"},
	{
		name: "other authority", policy: func(a *string, _ []map[string]any) { *a = "https://other.example" },
		reason: "authority is https://other.example: the token's issuer is",
	},
	{name: "foreign issuer", fault: fake.Fault{Kind: fake.ForeignIssuer}, reason: `its issuer is "https://other.example"`},
	{
		name: "another vault's name", fault: fake.Fault{Service: fake.Vault, Kind: fake.OtherName},
		reason: "certificate is valid for other.example, not localhost",
	},
	{
		name: "other kid", fault: fake.Fault{Service: fake.Vault, Kind: fake.OtherKID},
		reason: "is about another key",
	},
	{
		name: "a key that is not there", ask: func(k *akv.KeyID) { k.Name = "absent" },
		reason: "404 Not Found: KeyNotFound",
	},
	{
		name: "debuggable guest", report: func(b []byte) { b[8+2] |= 1 << 3 },
		reason: "x-ms-sevsnpvm-is-debuggable is true",
	},
	{
		name: "debuggable guest, seen by the vault", fault: fake.Fault{Kind: fake.Debuggable},
		reason: "x-ms-sevsnpvm-is-debuggable is true",
	},
	{
		name: "VMPL 1", report: func(b []byte) { binary.LittleEndian.PutUint32(b[0x30:], 1) },
		reason: "x-ms-sevsnpvm-vmpl is 1 and not 0",
	},
	{name: "expired token", fault: fake.Fault{Kind: fake.Expired}, reason: "it has expired"},
	{name: "token of tomorrow", fault: fake.Fault{Kind: fake.Early}, reason: "it is not valid yet"},
	{name: "unsigned token", fault: fake.Fault{Kind: fake.Unsigned}, reason: "no JWT that is signed with RS256"},
	{name: "HS256", fault: fake.Fault{Kind: fake.SharedKey}, reason: "no JWT that is signed with RS256"},
	{name: "another signer", fault: fake.Fault{Kind: fake.OtherSigner}, reason: "has not signed it"},
	{name: "jku elsewhere", fault: fake.Fault{Kind: fake.ForeignJKU}, reason: `names keys at "https://other.example/certs"`},
	{
		name: "runtime key swapped", fault: fake.Fault{Kind: fake.SwappedKey},
		reason: "x-ms-runtime is not the runtime data",
	},
	{
		name: "report data of another key, in the token", fault: fake.Fault{Kind: fake.OtherReport},
		reason: "the report was made for another key",
	},
	{
		name: "report data of another key, in the report", report: func(b []byte) { b[0x50] ^= 1 },
		reason: "AttestationFailed: report-data",
	},
	{
		name: "JWS altered", fault: fake.Fault{Service: fake.Vault, Kind: fake.Altered},
		reason: "was not signed by the key of its certificate",
	},
	{
		name: "chain expired", fault: fake.Fault{Service: fake.Vault, Kind: fake.OldChain},
		reason: "certificate has expired",
	},
	{
		name: "answer to another request", fault: fake.Fault{Service: fake.Vault, Kind: fake.OtherNonce},
		reason: "answers another request: its nonce",
	},
	{
		name: "check value of the key wrap", fault: fake.Fault{Service: fake.Vault, Kind: fake.BadCheck},
		reason: "the wrapped key does not unwrap",
	},
	{
		name: "wrong modulus length", fault: fake.Fault{Service: fake.Vault, Kind: fake.ShortBlob},
		reason: "an RSA key of 2048 bits has 256 bytes in front",
	},
	{
		name: "other wrapping", fault: fake.Fault{Service: fake.Vault, Kind: fake.OtherWrap},
		reason: `wrapped by "dir"/"RSA1_5"`,
	},
	{
		name: "bearer token for another service", fault: fake.Fault{Service: fake.Vault, Kind: fake.NoAudience},
		reason: "graph.example, which is another service",
	},
	{
		name: "certificate for another patch level", report: func(b []byte) { b[0x180+6]--; b[0x1E0+6]-- },
		reason: "AttestationFailed: certificate.tcb",
	},
	{
		name: "another key of the guest", swap: true, reason: "does not unwrap",
	},
}

func TestEachWrongReleaseIsRefusedWithItsReason(t *testing.T) {
	w := newWorld(t, nil)
	for _, n := range negatives {
		t.Run(n.name, func(t *testing.T) {
			if n.fault.Service == "" {
				n.fault.Service = fake.MAA
			}
			w.T, w.report = t, n.report
			id := w.load(fake.Vault, "pay", secret, w.policy(n.policy), false)
			if n.fault.Kind != "" {
				if err := w.fake.SetFaults(n.fault); err != nil {
					t.Fatal(err)
				}
			}
			if n.ask != nil {
				n.ask(&id)
			}
			w.key = guestKey()
			token, _, err := w.attest(t.Context())
			if n.swap {
				w.key = otherKey()
			}
			if err == nil {
				_, err = w.vault.Release(t.Context(), akv.Ask{Key: id, Token: token, Wrap: kwp.RSAAES256}, w.key)
			}
			if err == nil || !strings.Contains(err.Error(), n.reason) {
				t.Errorf("release: %v, want %q", err, n.reason)
			}
			if err != nil && strings.Contains(err.Error(), string(secret)) {
				t.Error("the error has the key")
			}
			if err := w.fake.SetFaults(); err != nil {
				t.Fatal(err)
			}
			w.report, w.key = nil, guestKey()
			id = w.load(fake.Vault, "pay", secret, w.policy(nil), false)
			if _, err := w.release(id, kwp.RSAAES256); err != nil {
				t.Errorf("without the fault: %v", err)
			}
		})
	}
}

func TestTheVaultRefusesWhatAHonestClientDoesNotSend(t *testing.T) {
	w := newWorld(t, nil)
	id := w.load(fake.Vault, "pay", secret, w.policy(nil), true)
	token, _, err := w.attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"empty target": "", "no JWT": "x", "altered": token[:len(token)-4] + "AAAA",
	} {
		_, err := w.vault.Release(t.Context(), akv.Ask{Key: id, Token: target, Wrap: kwp.RSAAES}, w.key)
		var e *azhttp.Error
		if !errors.As(err, &e) || e.Status != http.StatusForbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.vault.Release(t.Context(), akv.Ask{Key: id, Token: token, Wrap: "RSA1_5"}, w.key); err == nil {
		t.Error("a wrapping that nobody knows was taken")
	}
	// An immutable policy stays.
	other, err := release.Seal(w.policy(cond(1, "00")), false)
	if err != nil {
		t.Fatal(err)
	}
	status, out := w.call(fake.Vault, http.MethodPatch, "/keys/pay", map[string]any{"release_policy": other})
	if status != http.StatusForbidden {
		t.Errorf("the immutable policy was changed: %d %v", status, out)
	}
	status, _ = w.call(fake.Vault, http.MethodPut, "/keys/pay", map[string]any{
		"key":            map[string]string{"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAA"},
		"attributes":     map[string]bool{"exportable": true},
		"release_policy": other,
	})
	if status != http.StatusForbidden {
		t.Errorf("the key with an immutable policy was replaced: %d", status)
	}
	if got, err := w.release(id, kwp.RSAAES); err != nil || !bytes.Equal(got.Material, secret) {
		t.Errorf("release: %v", err)
	}
	// A version that is there, and one that is not.
	_, bundle := w.call(fake.Vault, http.MethodGet, "/keys/pay", nil)
	full, err := akv.ParseKeyID(bundle["key"].(map[string]any)["kid"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.release(full, kwp.RSAAES); err != nil {
		t.Errorf("release of a version: %v", err)
	}
	full.Version = strings.Repeat("0", 32)
	if _, err := w.release(full, kwp.RSAAES); err == nil {
		t.Error("a version that is not there was released")
	}
}

// sampleBody is a request with sample evidence for data, and other data beside it.
func sampleBody(data, beside string) []byte {
	sum := sha256.Sum256([]byte(data))
	enc := base64.URLEncoding.EncodeToString
	report := fmt.Sprintf(`{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(sum[:]))
	return fmt.Appendf(nil, `{"report":%q,"runtimeData":{"data":%q,"dataType":"JSON"}}`, enc([]byte(report)),
		enc([]byte(beside)))
}

func TestSampleEvidenceIsMarked(t *testing.T) {
	for _, allow := range []bool{false, true} {
		w := newWorld(t, func(o *fake.Options) { o.AllowInsecure = allow })
		c := w.client("attestation service")
		a, err := c.Do(t.Context(), azhttp.Request{
			Method: http.MethodPost, URL: w.fake.URL(fake.MAA) + "/attest/Sample?api-version=1",
			Body: sampleBody("{}", "{}"),
		})
		if allow != (err == nil) {
			t.Fatalf("allowed %t: %v", allow, err)
		}
		_, err = c.Do(t.Context(), azhttp.Request{
			Method: http.MethodPost, URL: w.fake.URL(fake.MAA) + "/attest/Sample?api-version=1",
			Body: sampleBody("{}", `{"keys":[]}`),
		})
		if err == nil || allow && !strings.Contains(err.Error(), "made for other runtime data") {
			t.Errorf("evidence for other data: %v", err)
		}
		if allow {
			id := w.load(fake.Vault, "pay", secret, w.policy(nil), false)
			token := strings.Split(string(a.Body), `"`)[3]
			_, err := w.vault.Release(t.Context(), akv.Ask{Key: id, Token: token, Wrap: kwp.RSAAES}, w.key)
			if err == nil || !strings.Contains(err.Error(), "equals sevsnpvm: it is insecure") {
				t.Errorf("release: %v", err)
			}
		}
	}
}

func TestFaultsOfTheConnection(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults []fake.Fault
		want   string // empty: the release succeeds
	}{
		{"one 429", []fake.Fault{{Service: fake.MAA, Kind: fake.Status, Status: 429, RetryAfter: "0", Times: 1}}, ""},
		{"503 twice", []fake.Fault{{Service: fake.Vault, Kind: fake.Status, Status: 503, Times: 2, Path: "release"}}, ""},
		{"resets", []fake.Fault{{Service: fake.Metadata, Kind: fake.Reset, Times: 2}}, ""},
		{
			"410 while the metadata service is updated",
			[]fake.Fault{{Service: fake.Metadata, Kind: fake.Status, Status: 410, Times: 1}},
			"",
		},
		{
			"always 503",
			[]fake.Fault{{Service: fake.MAA, Kind: fake.Status, Status: 503}},
			"attestation service: answers 503 Service Unavailable after 3 attempts",
		},
		{"away", []fake.Fault{{Service: fake.Vault, Kind: fake.Reset}}, "vault: no answer after 3 attempts"},
		{"no token", []fake.Fault{{Service: fake.Metadata, Kind: fake.Status, Status: 404}}, "metadata service: answers 404"},
		{"too long", []fake.Fault{{Service: fake.MAA, Kind: fake.TooLong}}, "an answer of more than 1048576 bytes"},
		{"redirect", []fake.Fault{{Service: fake.Vault, Kind: fake.Redirect}}, "other.example: other hosts are not asked"},
		{"400", []fake.Fault{{Service: fake.Vault, Kind: fake.Status, Status: 400}}, "vault: answers 400"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.load(fake.Vault, "pay", secret, w.policy(nil), false)
			if err := w.fake.SetFaults(tc.faults...); err != nil {
				t.Fatal(err)
			}
			before := w.fake.Asked(tc.faults[0].Service)
			_, err := w.release(id, kwp.RSAAES)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("release: %v, want %q", err, tc.want)
			}
			if n := w.fake.Asked(tc.faults[0].Service) - before; n > 6 {
				t.Errorf("%s was asked %d times", tc.faults[0].Service, n)
			}
		})
	}
}

func TestRetryAfterAndTheDeadline(t *testing.T) {
	w := newWorld(t, nil)
	w.load(fake.Vault, "pay", secret, w.policy(nil), false)
	// The service asks for more patience than the caller has: no second attempt, and no wait.
	busy := fake.Fault{Service: fake.MAA, Kind: fake.Status, Status: 429, RetryAfter: "60"}
	if err := w.fake.SetFaults(busy); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	before := w.fake.Asked(fake.MAA)
	if _, _, err := w.attest(ctx); err == nil || !strings.Contains(err.Error(), "429") || ctx.Err() != nil {
		t.Errorf("attest: %v", err)
	}
	if n := w.fake.Asked(fake.MAA) - before; n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestAGuestWhoseClockIsOff(t *testing.T) {
	for _, skew := range []time.Duration{-8 * 30 * 24 * time.Hour, 300 * 24 * time.Hour, 2 * time.Minute} {
		w := newWorld(t, nil)
		id := w.load(fake.Vault, "pay", secret, w.policy(nil), false)
		w.skew = skew
		_, claims, err := w.attest(t.Context())
		if err != nil {
			t.Errorf("%v: %v", skew, err)
			continue
		}
		want := "service"
		if skew.Abs() < azhttp.MaxSkew {
			want = "guest"
		}
		key, err := w.release(id, kwp.RSAAES)
		if err != nil || claims.Clock != want || key.Clock != want {
			t.Errorf("%v: %v, judged by the clock of the %s", skew, err, claims.Clock)
		}
	}
}

func TestWorkloadIdentityReadsItsFileEachTime(t *testing.T) {
	w := newWorld(t, nil)
	id := w.load(fake.Vault, "pay", secret, w.policy(nil), false)
	reads := 0
	w.vault.Tokens = entra.Workload{
		Client: w.client("entra"), Authority: w.fake.URL(fake.Entra), Tenant: "tenant", ClientID: "client",
		Assertion: func() ([]byte, error) { reads++; return []byte("assertion\n"), nil },
	}
	for range 2 {
		if _, err := w.release(id, kwp.RSAAES); err != nil {
			t.Fatal(err)
		}
	}
	if reads != 2 {
		t.Errorf("the file was read %d times", reads)
	}
}

func TestTheStateIsKept(t *testing.T) {
	dir := t.TempDir()
	keep := func(o *fake.Options) { o.Dir = dir }
	w := newWorld(t, keep)
	id := w.load(fake.Vault, "pay", secret, w.policy(func(a *string, _ []map[string]any) { *a = "https://later" }), false)
	again := newWorld(t, keep)
	if !bytes.Equal(w.fake.CA(), again.fake.CA()) {
		t.Error("another CA")
	}
	id.Vault = again.fake.URL(fake.Vault)
	if _, err := again.release(id, kwp.RSAAES); err == nil || !strings.Contains(err.Error(), "https://later") {
		t.Errorf("the key was not kept: %v", err)
	}
}

func TestTokensOfAnUnknownKeyAreLookedForOnce(t *testing.T) {
	w := newWorld(t, nil)
	if _, _, err := w.attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := w.fake.Asked(fake.MAA)
	if _, _, err := w.attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := w.fake.Asked(fake.MAA) - before; n != 1 {
		t.Errorf("a second token took %d requests: the keys are known", n)
	}
}
