// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/azure/release"
)

// maa serves the attestation service. Its paths have no case.
func (f *Fake) maa(w http.ResponseWriter, r *http.Request) {
	issuer := f.URL(MAA)
	switch path := strings.ToLower(r.URL.Path); {
	case r.Method == http.MethodGet && path == "/certs":
		set, err := f.certs()
		if err != nil {
			refuse(w, http.StatusInternalServerError, "InternalError", "%v", err)
			return
		}
		answer(w, http.StatusOK, map[string]any{"keys": []any{set}})
	case r.Method == http.MethodGet && path == "/.well-known/openid-configuration":
		answer(w, http.StatusOK, map[string]any{
			"issuer": issuer, "jwks_uri": issuer + "/certs", "response_types_supported": []string{"token", "none"},
			"id_token_signing_alg_values_supported": []string{"RS256"},
			"claims_supported":                      []string{"iss", "iat", "exp", "nbf", "jti"},
		})
	case r.Method == http.MethodPost && path == "/attest/sevsnpvm":
		f.attest(w, r, f.snpClaims)
	case r.Method == http.MethodPost && path == "/attest/sample":
		f.attest(w, r, f.sampleClaims)
	default:
		refuse(w, http.StatusNotFound, "NotFound", "%s %.100q is not served", r.Method, r.URL.Path)
	}
}

// certs is the JWK of the signing key: with x5c and without n and e, as the service writes it.
func (f *Fake) certs() (map[string]any, error) {
	now := f.opts.Now()
	der, err := f.state.leaf("attestation", now.Add(-time.Minute), now.AddDate(1, 0, 0), f.state.signer.Public())
	return map[string]any{
		"kid": kid(&f.state.signer.PublicKey), "kty": "RSA", "use": "sig", "alg": "RS256",
		"x5c": []string{base64.StdEncoding.EncodeToString(der)},
	}, err
}

// evidence is the body of a request.
type evidence struct {
	Report  string `json:"report"`
	Runtime struct {
		Data string `json:"data"`
		Type string `json:"dataType"`
	} `json:"runtimeData"`
	Nonce json.RawMessage `json:"nonce"`
}

// attest answers evidence with a token.
func (f *Fake) attest(
	w http.ResponseWriter, r *http.Request, claimsOf func(report, runtime []byte) (map[string]any, error),
) {
	if r.URL.Query().Get("api-version") == "" {
		refuse(w, http.StatusBadRequest, "InvalidParameter", "api-version is missing")
		return
	}
	var e evidence
	if !read(w, r, &e) {
		return
	}
	report, errReport := release.Base64(e.Report)
	runtime, errRuntime := release.Base64(e.Runtime.Data)
	if err := errors.Join(errReport, errRuntime); err != nil || e.Runtime.Type != "JSON" && len(runtime) > 0 {
		refuse(w, http.StatusBadRequest, "InvalidParameter", "report or runtimeData is not base64url, or no JSON: %v", err)
		return
	}
	claims, err := claimsOf(report, runtime)
	if err == nil {
		err = setRuntime(claims, runtime)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "AttestationFailed", "%v", err)
		return
	}
	token, err := f.token(r, claims)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "InternalError", "%v", err)
		return
	}
	answer(w, http.StatusOK, map[string]string{"token": token})
}

func setRuntime(claims map[string]any, runtime []byte) error {
	if len(runtime) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(runtime))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return fmt.Errorf("runtimeData: %w", err)
	}
	claims["x-ms-runtime"] = v
	return nil
}

// snpClaims verifies a report of SNP.
func (f *Fake) snpClaims(body, runtime []byte) (map[string]any, error) {
	var m struct{ SnpReport, VcekCertChain string }
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	report, errReport := release.Base64(m.SnpReport)
	chain, errChain := release.Base64(m.VcekCertChain)
	if err := errors.Join(errReport, errChain); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	col := attestation.Collateral{Now: f.opts.Now()}
	for kind := snp.KindVCEK; ; kind = snp.KindChain {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			break
		}
		col.Documents = append(col.Documents, attestation.Document{Kind: kind, Name: "VcekCertChain", Data: block.Bytes})
	}
	sum := sha256.Sum256(runtime)
	want := snp.Expectations{AllowDebug: true, AllowMigration: true, VMPLs: []uint32{0, 1, 2, 3}}
	want.Undecided = []attestation.Item{
		attestation.ItemInitData, attestation.ItemMeasurement, snp.ItemTCB, snp.ItemRevocation,
	}
	want.ReportData = sum[:]
	c, err := f.opts.Verifier.Verify(attestation.Evidence{Type: attestation.SNP, Report: report}, col, want)
	if err != nil {
		return nil, err
	}
	d := c.Details
	return map[string]any{
		release.ClaimType: "sevsnpvm", release.ClaimHostData: d["init_data"], release.ClaimMeasurement: d["measurement"],
		release.ClaimDebuggable: d["policy_debug_allowed"], release.ClaimVMPL: d["vmpl"],
		release.ClaimGuestSVN: d["guest_svn"],
		release.ClaimIDKey:    d["id_key_digest"], release.ClaimAuthorKey: d["author_key_digest"],
		release.ClaimReportData: d["report_data"], release.ClaimMigration: d["policy_migrate_ma"],
		"x-ms-sevsnpvm-reportid": d["report_id"], "x-ms-sevsnpvm-smt-allowed": d["policy_smt_allowed"],
		"x-ms-sevsnpvm-familyId": d["family_id"], "x-ms-sevsnpvm-imageId": d["image_id"],
		"x-ms-sevsnpvm-bootloader-svn": d["reported_tcb_bootloader"], "x-ms-sevsnpvm-tee-svn": d["reported_tcb_tee"],
		"x-ms-sevsnpvm-snpfw-svn": d["reported_tcb_snp"], "x-ms-sevsnpvm-microcode-svn": d["reported_tcb_microcode"],
	}, nil
}

// sampleClaims takes evidence that proves nothing: CoCo's sample evidence, and that of a TPM which some host runs. No
// policy that asks for sevsnpvm or tdxvm can take its token.
func (f *Fake) sampleClaims(body, runtime []byte) (map[string]any, error) {
	if !f.opts.AllowInsecure {
		return nil, errors.New("sample evidence proves nothing: it is taken with --allow-insecure only")
	}
	var e struct {
		Data  []byte `json:"report_data"`
		Quote struct {
			Message []byte `json:"message"`
		} `json:"tpm_quote"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, fmt.Errorf("sample evidence: %w", err)
	}
	if e.Quote.Message != nil {
		q, err := tpm.Parse(e.Quote.Message)
		if err != nil {
			return nil, err
		}
		e.Data = q.ExtraData
	}
	if sum := sha256.Sum256(runtime); len(e.Data) < len(sum) || !bytes.Equal(e.Data[:len(sum)], sum[:]) {
		return nil, errors.New("report-data: the sample evidence was made for other runtime data")
	}
	return map[string]any{release.ClaimType: "insecure"}, nil
}

// token signs claims, with the lies that are asked for.
func (f *Fake) token(r *http.Request, claims map[string]any) (string, error) {
	now, issuer := f.opts.Now().Unix(), f.URL(MAA)
	policy := sha256.Sum256([]byte("coco azure fake"))
	more := map[string]any{
		"iss": issuer, "iat": now, "nbf": now, "exp": now + int64(8*time.Hour/time.Second), "jti": random(32),
		"x-ms-ver": "1.0", "x-ms-policy-hash": base64.RawURLEncoding.EncodeToString(policy[:]),
	}
	for k, v := range more {
		claims[k] = v
	}
	for kind, lie := range map[Kind]func(){
		Expired:       func() { claims["iat"], claims["nbf"], claims["exp"] = now-7200, now-7200, now-3600 },
		Early:         func() { claims["nbf"] = now + 3600 },
		ForeignIssuer: func() { claims["iss"] = "https://other.example" },
		Debuggable:    func() { claims[release.ClaimDebuggable] = true },
		OtherVMPL:     func() { claims[release.ClaimVMPL] = 1 },
		SwappedKey:    func() { claims["x-ms-runtime"] = map[string]any{"keys": []any{}} },
		OtherReport:   func() { claims[release.ClaimReportData] = strings.Repeat("00", 64) },
	} {
		if f.lies(r, kind) {
			lie()
		}
	}
	return f.sign(r, claims)
}

func (f *Fake) sign(r *http.Request, claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	jku := f.URL(MAA) + "/certs"
	if f.lies(r, ForeignJKU) {
		jku = "https://other.example/certs"
	}
	name := kid(&f.state.signer.PublicKey)
	if f.lies(r, Unsigned) {
		head := fmt.Appendf(nil, `{"alg":"none","jku":%q,"kid":%q}`, jku, name)
		enc := base64.RawURLEncoding.EncodeToString
		return enc(head) + "." + enc(payload) + ".", nil
	}
	key := jose.SigningKey{Algorithm: jose.RS256, Key: f.state.signer}
	if f.lies(r, SharedKey) { // the public key as secret, which some libraries take
		key = jose.SigningKey{Algorithm: jose.HS256, Key: x509.MarshalPKCS1PublicKey(&f.state.signer.PublicKey)}
	}
	if f.lies(r, OtherSigner) {
		other, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return "", err
		}
		key.Key = other
	}
	opts := (&jose.SignerOptions{}).WithType("JWT").WithHeader("jku", jku).WithHeader("kid", name)
	signer, err := jose.NewSigner(key, opts)
	if err != nil {
		return "", err
	}
	s, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return s.CompactSerialize()
}

// verified checks a token as a vault does, and returns its claims.
func (f *Fake) verified(token string) (release.Claims, error) {
	var c release.Claims
	t, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return c, fmt.Errorf("the target is no JWT that is signed with RS256: %w", err)
	}
	head := t.Signatures[0].Header
	if jku, _ := head.ExtraHeaders["jku"].(string); jku != f.URL(MAA)+"/certs" {
		return c, errors.New("the target names keys of no attestation service that is known")
	}
	payload, err := t.Verify(&f.state.signer.PublicKey)
	if err != nil {
		return c, errors.New("the target's signature does not hold")
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if err := dec.Decode(&c.Values); err != nil {
		return c, err
	}
	c.Issuer, _ = c.Values["iss"].(string)
	now := f.opts.Now().Unix()
	exp, _ := c.Values["exp"].(json.Number)
	nbf, _ := c.Values["nbf"].(json.Number)
	until, errExp := exp.Int64()
	from, errNBF := nbf.Int64()
	if errExp != nil || errNBF != nil || now >= until || now < from {
		return c, errors.New("the target has expired, or is not valid yet")
	}
	return c, nil
}
