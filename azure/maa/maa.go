// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package maa asks Microsoft Azure Attestation for tokens, and checks them.
//
// Attest sends evidence and gets a token. Check trusts a token only as the configured issuer's: the token must name its
// keys at the issuer's own address (which is asked, whatever the token says), be signed with RS256 by one of them, be
// valid at the time, and say that the guest cannot be debugged and reported from VMPL 0. A key that is not known is
// looked for once more, since the service changes its keys.
package maa

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/release"
)

// Kind is a kind of evidence. Its value is the last part of the service's path.
type Kind string

// Kinds of evidence.
const (
	SevSnpVM Kind = "SevSnpVm"
	TdxVM    Kind = "TdxVm"
	// InsecureSample proves nothing. Azure does not attest it; fakes do on demand.
	InsecureSample Kind = "Sample"
)

// versions of the API by kind.
var versions = map[Kind]string{SevSnpVM: "2022-08-01", TdxVM: "2023-04-01-preview", InsecureSample: "2022-08-01"}

// kinds are the attestation types that tokens have.
var kinds = map[Kind]string{SevSnpVM: "sevsnpvm", TdxVM: "tdxvm", InsecureSample: "insecure"}

// Evidence is a guest's evidence in the form of MAA's requests.
type Evidence struct {
	Kind Kind
	// Report is the report of SNP, or the quote of TDX.
	Report []byte
	// Chain is PEM of the chip's certificate and its issuers (SNP).
	Chain []byte
	// Endorsements are signed statements on the launch digest (COSE_Sign1), or none (SNP).
	Endorsements [][]byte
	// RuntimeData is JSON. The first 32 bytes of the report's REPORT_DATA are its SHA-256, the others zero.
	RuntimeData []byte
}

// ReportData returns the report data with which the guest asks for a report about runtime data.
func ReportData(runtime []byte) (out [64]byte) {
	sum := sha256.Sum256(runtime)
	copy(out[:], sum[:])
	return out
}

// Client is an attestation service. Its methods may be called by several goroutines.
type Client struct {
	HTTP *azhttp.Client
	// Issuer is the service's URL, and the iss of its tokens.
	Issuer string

	mu   sync.Mutex
	keys map[string]*rsa.PublicKey // by kid; guarded by mu
}

func b64(b []byte) string { return base64.URLEncoding.EncodeToString(b) }

type typed struct {
	Data string `json:"data"`
	Type string `json:"dataType"`
}

// body is the request of both kinds.
type body struct {
	Report  string `json:"report,omitempty"`
	Quote   string `json:"quote,omitempty"`
	Runtime typed  `json:"runtimeData"`
	Init    *typed `json:"initTimeData,omitempty"`
	Nonce   uint64 `json:"nonce"`
}

func (e Evidence) body() ([]byte, error) {
	var n [8]byte
	rand.Read(n[:])
	out := body{Runtime: typed{b64(e.RuntimeData), "JSON"}, Nonce: binary.BigEndian.Uint64(n[:])}
	if e.Kind == TdxVM {
		out.Quote = b64(e.Report)
		return json.Marshal(out)
	}
	if e.Kind == InsecureSample {
		out.Report = b64(e.Report)
		return json.Marshal(out)
	}
	out.Init = &typed{} // the service's own clients send it empty
	report := map[string]string{"SnpReport": b64(e.Report), "VcekCertChain": b64(e.Chain)}
	if len(e.Endorsements) > 0 {
		var uvm []string
		for _, s := range e.Endorsements {
			uvm = append(uvm, b64(s))
		}
		text, err := json.Marshal(map[string][]string{"Uvm": uvm})
		if err != nil {
			return nil, err
		}
		report["Endorsements"] = b64(text)
	}
	text, err := json.Marshal(report)
	if err != nil {
		return nil, err
	}
	out.Report = b64(text)
	return json.Marshal(out)
}

// Attest returns the token for evidence, and the time that its answer tells. The token is not checked.
func (c *Client) Attest(ctx context.Context, e Evidence) (string, azhttp.Time, error) {
	issuer, err := azhttp.Endpoint(c.Issuer)
	if err != nil {
		return "", azhttp.Time{}, fmt.Errorf("attestation service: %w", err)
	}
	version := versions[e.Kind]
	if version == "" || !json.Valid(e.RuntimeData) {
		return "", azhttp.Time{}, fmt.Errorf("attest: kind %q is not known, or the runtime data is no JSON", e.Kind)
	}
	text, err := e.body()
	if err != nil {
		return "", azhttp.Time{}, err
	}
	a, err := c.HTTP.Do(ctx, azhttp.Request{
		Method: http.MethodPost, URL: issuer + "/attest/" + string(e.Kind) + "?api-version=" + version,
		Header: map[string]string{"Content-Type": "application/json"}, Body: text,
	})
	if err != nil {
		return "", azhttp.Time{}, err
	}
	var out struct{ Token string }
	if err := json.Unmarshal(a.Body, &out); err != nil || out.Token == "" {
		return "", azhttp.Time{}, errors.New("attestation service: the answer has no token")
	}
	return out.Token, a.Time, nil
}

// Expect has the caller's demands on a token.
type Expect struct {
	Kind Kind
	// At is the time to judge at. azhttp.Time says whose clock it is.
	At azhttp.Time
	// RuntimeData are the data that the token must be bound to; nil: any.
	RuntimeData []byte
}

// Claims are the claims of a token that holds.
type Claims struct {
	Values map[string]any
	// Clock is whose clock the token's times were compared with: "guest" or "service".
	Clock string
}

const maxToken = 128 << 10

// Check checks a token.
func (c *Client) Check(ctx context.Context, token string, want Expect) (*Claims, error) {
	out, err := c.check(ctx, token, want)
	if err != nil {
		return nil, fmt.Errorf("attestation token: %w", err)
	}
	return out, nil
}

func (c *Client) check(ctx context.Context, token string, want Expect) (*Claims, error) {
	issuer, err := azhttp.Endpoint(c.Issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	if len(token) > maxToken {
		return nil, fmt.Errorf("it has more than %d bytes", maxToken)
	}
	t, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return nil, fmt.Errorf("it is no JWT that is signed with RS256: %w", err)
	}
	head := t.Signatures[0].Header
	if jku, _ := head.ExtraHeaders["jku"].(string); jku != issuer+"/certs" {
		return nil, fmt.Errorf("it names keys at %.200q and not at %s/certs, which is the configured issuer's", jku, issuer)
	}
	key, err := c.key(ctx, issuer, head.KeyID)
	if err != nil {
		return nil, err
	}
	payload, err := t.Verify(key)
	if err != nil {
		return nil, fmt.Errorf("the issuer's key %.80q has not signed it", head.KeyID)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var values map[string]any
	if err := dec.Decode(&values); err != nil {
		return nil, fmt.Errorf("its claims are no JSON: %w", err)
	}
	if err := judge(values, issuer, want); err != nil {
		return nil, err
	}
	return &Claims{values, want.At.Source}, nil
}

// judge compares the claims with the caller's demands.
func judge(values map[string]any, issuer string, want Expect) error {
	if iss, _ := values["iss"].(string); strings.TrimRight(iss, "/") != issuer {
		return fmt.Errorf("its issuer is %.200q and not %s", iss, issuer)
	}
	if err := times(values, want.At); err != nil {
		return err
	}
	kind := kinds[want.Kind]
	if got, _ := values[release.ClaimType].(string); got != kind || kind == "" {
		return fmt.Errorf("%s is %.60q and not %q", release.ClaimType, got, kind)
	}
	if want.Kind != InsecureSample {
		if err := protected(values, want.Kind); err != nil {
			return err
		}
	}
	if want.RuntimeData == nil {
		return nil
	}
	return bound(values, want)
}

// protected says whether the host cannot read the guest's memory.
func protected(values map[string]any, kind Kind) error {
	debug := release.ClaimDebuggable
	if kind == TdxVM {
		debug = release.ClaimTDXDebug
	}
	if v, ok := values[debug].(bool); !ok || v {
		return fmt.Errorf("%s is %v and not false: the host can read the guest's memory", debug, values[debug])
	}
	if n, ok := values[release.ClaimVMPL].(json.Number); kind == SevSnpVM && (!ok || n.String() != "0") {
		return fmt.Errorf("%s is %v and not 0", release.ClaimVMPL, values[release.ClaimVMPL])
	}
	return nil
}

// bound compares the token with the runtime data: the claim has the JSON, and the report its digest.
func bound(values map[string]any, want Expect) error {
	dec := json.NewDecoder(bytes.NewReader(want.RuntimeData))
	dec.UseNumber()
	var ours any
	if err := dec.Decode(&ours); err != nil {
		return fmt.Errorf("runtime data: %w", err)
	}
	a, errA := json.Marshal(ours) // keys are sorted
	b, errB := json.Marshal(values["x-ms-runtime"])
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		return errors.New("x-ms-runtime is not the runtime data that was sent: the key in it is another one")
	}
	if want.Kind == InsecureSample {
		return nil // there is no report
	}
	claim := release.ClaimReportData
	if want.Kind == TdxVM {
		claim = "tdx_report_data"
	}
	report := ReportData(want.RuntimeData)
	if got, _ := values[claim].(string); !strings.EqualFold(got, fmt.Sprintf("%x", report)) {
		return fmt.Errorf("%s is not the digest of the runtime data: the report was made for another key", claim)
	}
	return nil
}

// times compares exp, nbf and iat. The token must have all of them.
func times(values map[string]any, at azhttp.Time) error {
	now := at.At.Unix()
	const leeway = 60 // seconds; service and guest may agree up to azhttp.MaxSkew on the future
	for _, c := range []struct {
		name string
		bad  func(int64) bool
		why  string
	}{
		{"exp", func(t int64) bool { return now >= t+leeway }, "it has expired"},
		{"nbf", func(t int64) bool { return now < t-int64(azhttp.MaxSkew.Seconds()) }, "it is not valid yet"},
		{"iat", func(t int64) bool { return now < t-int64(azhttp.MaxSkew.Seconds()) }, "it was issued in the future"},
	} {
		n, ok := values[c.name].(json.Number)
		t, err := n.Int64()
		if !ok || err != nil {
			return fmt.Errorf("it has no %s", c.name)
		}
		if c.bad(t) {
			return fmt.Errorf("%s: %s is %d, and the %s's clock %d", c.why, c.name, t, at.Source, now)
		}
	}
	return nil
}

// key returns the issuer's key. Keys are asked for when one is not known: once at first, and once more for a new one.
func (c *Client) key(ctx context.Context, issuer, kid string) (*rsa.PublicKey, error) {
	if kid == "" {
		return nil, errors.New("it does not name its key")
	}
	c.mu.Lock()
	k := c.keys[kid]
	c.mu.Unlock()
	if k != nil {
		return k, nil
	}
	a, err := c.HTTP.Do(ctx, azhttp.Request{Method: http.MethodGet, URL: issuer + "/certs"})
	if err != nil {
		return nil, fmt.Errorf("keys of the issuer: %w", err)
	}
	keys, err := ParseKeys(a.Body)
	if err != nil {
		return nil, fmt.Errorf("keys of the issuer: %w", err)
	}
	c.mu.Lock()
	c.keys = keys
	c.mu.Unlock()
	if k = keys[kid]; k == nil {
		return nil, fmt.Errorf("the issuer has no key %.80q", kid)
	}
	return k, nil
}

// maxKeys bounds a set of keys.
const maxKeys = 64

// ParseKeys reads the service's JWK set. Its keys may be in x5c only; the certificates are the service's own, and add
// no trust to the connection that they came by.
func ParseKeys(b []byte) (map[string]*rsa.PublicKey, error) {
	var set struct {
		Keys []struct {
			KID string   `json:"kid"`
			KTY string   `json:"kty"`
			N   string   `json:"n"`
			E   string   `json:"e"`
			X5C []string `json:"x5c"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, err
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	out := map[string]*rsa.PublicKey{}
	for _, k := range set.Keys {
		if k.KTY != "RSA" || k.KID == "" {
			continue // no token that is accepted was signed by it
		}
		key, err := publicKey(k.N, k.E, k.X5C)
		if err != nil {
			return nil, fmt.Errorf("key %.80q: %w", k.KID, err)
		}
		if out[k.KID] != nil {
			return nil, fmt.Errorf("key %.80q is there twice", k.KID)
		}
		out[k.KID] = key
	}
	return out, nil
}

func publicKey(n, e string, x5c []string) (*rsa.PublicKey, error) {
	var key *rsa.PublicKey
	if len(x5c) > 0 {
		der, err := base64.StdEncoding.DecodeString(x5c[0])
		if err != nil {
			return nil, fmt.Errorf("x5c: %w", err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("x5c: %w", err)
		}
		var ok bool
		if key, ok = cert.PublicKey.(*rsa.PublicKey); !ok {
			return nil, errors.New("x5c: no RSA key")
		}
	}
	if n == "" && key != nil {
		return key, checkSize(key)
	}
	nb, errN := release.Base64(n)
	eb, errE := release.Base64(e)
	if errN != nil || errE != nil || len(eb) == 0 || len(eb) > 4 {
		return nil, errors.New("it has neither n and e nor x5c")
	}
	exponent := new(big.Int).SetBytes(eb).Int64()
	bare := &rsa.PublicKey{N: new(big.Int).SetBytes(nb), E: int(exponent)}
	if key != nil && !key.Equal(bare) {
		return nil, errors.New("x5c has another key than n and e")
	}
	return bare, checkSize(bare)
}

func checkSize(k *rsa.PublicKey) error {
	if n := k.N.BitLen(); n < 2048 || n > 8192 || k.E < 3 || k.E&1 == 0 {
		return fmt.Errorf("an RSA key of %d bits with exponent %d", n, k.E)
	}
	return nil
}
