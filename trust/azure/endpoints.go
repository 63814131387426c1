// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package azure answers the requests of containers that were written for Microsoft's sidecar for key release (SKR): its
// paths, bodies and status codes. The workload API serves it (trust/workload) and says which container asks; what that
// container may ask for stands in its policy (policy.Azure). A host that a request names must stand there too, so no
// container can have the guest ask another one.
//
// Nothing is made up: a guest that cannot report answers 501.
package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/maa"
	"github.com/coco-shim/coco/azure/skr"
	"github.com/coco-shim/coco/azure/thim"
	"github.com/coco-shim/coco/policy"
)

// Attester makes the evidence of the guest, in CoCo's JSON.
type Attester interface {
	TEE() string
	Evidence(ctx context.Context, data []byte) (json.RawMessage, error)
}

// Endpoints are those of one pod. Their methods may be called by several goroutines.
type Endpoints struct {
	cfg      Config
	broken   error // the fault in azure.toml; nil: it has none
	attester Attester
	noReport error // with attester nil
	http     *http.Client
	roots    *x509.CertPool
	store    *thim.Store
	services map[string]*maa.Client // by host; those of the policy
	keys     *spare                 // nil: the policy opens no key
}

// New makes the endpoints of a pod with this policy. They answer with broken if cfg is of no use. a is nil if the guest
// can make no evidence, for the reason why.
func New(p *policy.Policy, cfg Config, broken error, a Attester, why error) *Endpoints {
	e := &Endpoints{
		cfg: cfg, broken: broken, attester: a, noReport: why, http: azhttp.New(cfg.Roots), roots: x509.NewCertPool(),
		store: &thim.Store{}, services: map[string]*maa.Client{},
	}
	for _, c := range cfg.Roots {
		e.roots.AddCert(c)
	}
	e.store.Sources = []thim.Source{thim.Host{Client: e.client("THIM"), URL: cfg.Metadata}}
	if cfg.CertCache != "" {
		cache := thim.Cache{Client: e.client("certificate cache"), URL: cfg.CertCache, ClientID: cfg.ClientID}
		e.store.Sources = append(e.store.Sources, cache)
	}
	for i := range p.Containers {
		a := &p.Containers[i].Workload.Azure
		hosts := slices.Clone(a.MAA)
		for _, k := range a.Keys {
			hosts = append(hosts, k.MAA)
		}
		if len(a.Keys) > 0 && e.keys == nil {
			e.keys = newSpare()
		}
		for _, h := range hosts {
			e.services[h] = &maa.Client{HTTP: e.client("attestation service"), Issuer: "https://" + h}
		}
	}
	return e
}

func (e *Endpoints) client(name string) *azhttp.Client {
	return &azhttp.Client{Service: name, HTTP: e.http, Attempts: e.cfg.Attempts}
}

// Close closes connections that are kept, and waits for a key that is being made.
func (e *Endpoints) Close() {
	e.http.CloseIdleConnections()
	if e.keys != nil {
		e.keys.close()
	}
}

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// calls are the paths. opens says whether the policy opens one to a container.
var calls = map[string]struct {
	method string
	opens  func(*policy.Azure) bool
	serve  func(*Endpoints, context.Context, *policy.Container, []byte) (any, error)
}{
	"/status":          {http.MethodGet, (*policy.Azure).Opens, (*Endpoints).status},
	"/attest/raw":      {http.MethodPost, with(policy.AzureRaw), (*Endpoints).raw},
	"/attest/combined": {http.MethodPost, with(policy.AzureCombined), (*Endpoints).combined},
	"/attest/maa":      {http.MethodPost, with(policy.AzureOwnKeys), (*Endpoints).token},
	"/key/release":     {http.MethodPost, hasKeys, (*Endpoints).release},
}

func with(call string) func(*policy.Azure) bool {
	return func(a *policy.Azure) bool { return slices.Contains(a.Calls, call) }
}

func hasKeys(a *policy.Azure) bool { return len(a.Keys) > 0 }

// Has says whether a path is one of the endpoints.
func (e *Endpoints) Has(path string) bool {
	return calls[path].serve != nil || strings.HasPrefix(path, service)
}

// Answer answers a request of a container with a status and a body, which the caller sends as JSON.
func (e *Endpoints) Answer(ctx context.Context, c *policy.Container, method, path string, body []byte) (int, any) {
	out, err := e.answer(ctx, c, method, path, body)
	if err == nil {
		return http.StatusOK, out
	}
	status := http.StatusForbidden // as the sidecar, whatever has failed on the way
	var no *refusal
	if errors.As(err, &no) {
		status = no.status
	}
	return status, map[string]string{"error": strings.ToValidUTF8(err.Error(), "?")}
}

func (e *Endpoints) answer(ctx context.Context, c *policy.Container, method, path string, body []byte) (any, error) {
	call := calls[path]
	switch {
	case call.serve == nil:
		return nil, refuse(http.StatusNotFound, "%.100q is a call of gRPC", path)
	case !call.opens(&c.Workload.Azure):
		return nil, refuse(http.StatusNotFound, "the policy does not open %s to container %s: containers[%s].workload.azure",
			path, c.Name, c.Name)
	case method != call.method:
		return nil, refuse(http.StatusMethodNotAllowed, "%s is asked for with %s", path, call.method)
	case e.broken != nil && path != "/status":
		return nil, refuse(http.StatusInternalServerError, "[config] %v", e.broken)
	}
	ctx, cancel := context.WithTimeout(ctx, max(e.cfg.Timeout, 1))
	defer cancel()
	return call.serve(e, ctx, c, body)
}

func (e *Endpoints) status(context.Context, *policy.Container, []byte) (any, error) {
	text := "Status OK"
	if e.broken != nil {
		text = "Status NOT OK"
	}
	return map[string]string{"message": text}, nil
}

// question is the body of a request.
type question struct {
	MAA     string `json:"maa_endpoint"`
	Vault   string `json:"akv_endpoint"`
	KID     string `json:"kid"`
	Bearer  string `json:"access_token"`
	Runtime string `json:"runtime_data"`

	runtime []byte
}

// read reads a body that must have these members.
func read(body []byte, members ...string) (q question, err error) {
	if err := json.Unmarshal(body, &q); err != nil {
		return q, refuse(http.StatusBadRequest, "invalid request format: the body is no JSON of this call: %v", err)
	}
	values := map[string]string{
		"maa_endpoint": q.MAA, "akv_endpoint": q.Vault, "kid": q.KID, "runtime_data": q.Runtime,
	}
	for _, m := range members {
		if values[m] == "" {
			return q, refuse(http.StatusBadRequest, "invalid request format: %s is missing", m)
		}
	}
	if q.runtime, err = base64.StdEncoding.DecodeString(q.Runtime); err != nil {
		return q, refuse(http.StatusBadRequest, "decoding base64-encoded runtime data of request failed: %v", err)
	}
	q.MAA, q.Vault = host(q.MAA), host(q.Vault)
	return q, nil
}

// host reads an endpoint: a host with or without https:// before it.
func host(text string) string {
	return strings.TrimRight(strings.TrimPrefix(strings.ToLower(text), "https://"), "/")
}

// report makes a report of SNP, if this guest can.
func (e *Endpoints) report(ctx context.Context, data [64]byte) ([]byte, error) {
	if e.attester == nil {
		return nil, refuse(http.StatusNotImplemented, "there is no report: %v", e.noReport)
	}
	if tee := e.attester.TEE(); tee != "snp" {
		return nil, refuse(http.StatusNotImplemented, "there is no report of SEV-SNP: this guest's evidence is of type %s, "+
			"and none is made up", tee)
	}
	text, err := e.attester.Evidence(ctx, data[:])
	if err != nil {
		return nil, err
	}
	ev, err := snp.ParseEvidence(text)
	return ev.Report, err
}

// raw answers with a report over the digest of the caller's data.
func (e *Endpoints) raw(ctx context.Context, _ *policy.Container, body []byte) (any, error) {
	q, err := read(body, "runtime_data")
	if err != nil {
		return nil, err
	}
	r, err := e.report(ctx, maa.ReportData(q.runtime))
	return map[string]string{"report": fmt.Sprintf("%x", r)}, err
}

// combined answers with the report, the chip's certificates and the endorsement.
func (e *Endpoints) combined(ctx context.Context, _ *policy.Container, body []byte) (any, error) {
	q, err := read(body, "runtime_data")
	if err != nil {
		return nil, err
	}
	return e.attested(ctx, q.runtime)
}

// attested is the report over runtime data, with all that a verifier needs.
func (e *Endpoints) attested(ctx context.Context, runtime []byte) (map[string]string, error) {
	g := &skr.Guest{Report: e.report, Certificates: e.store}
	ev, err := g.SNP(ctx, runtime)
	if err != nil {
		return nil, err
	}
	out := map[string]string{
		"evidence":     base64.StdEncoding.EncodeToString(ev.Report),
		"endorsements": base64.StdEncoding.EncodeToString(ev.Chain),
		"endorsed_tcb": fmt.Sprintf("%016x", skr.TCB(ev.Report)), "uvm_endorsements": "",
	}
	if len(e.cfg.Endorsements) > 0 {
		out["uvm_endorsements"] = base64.StdEncoding.EncodeToString(e.cfg.Endorsements[0])
	}
	return out, nil
}

// guest are the clients for one request.
func (e *Endpoints) guest(service, bearer string) *skr.Guest {
	var tokens akv.Tokens = given(bearer)
	if bearer == "" {
		tokens = entra.Metadata{Client: e.client("metadata service"), URL: e.cfg.Metadata, ClientID: e.cfg.ClientID}
	}
	return &skr.Guest{
		Report: e.report, Certificates: e.store, Endorsements: e.cfg.Endorsements, Evidence: e.otherEvidence(),
		MAA: e.services[service], Vault: &akv.Client{HTTP: e.client("vault"), Tokens: tokens, Roots: e.roots},
	}
}

// given is the bearer token of a request.
type given string

// Token returns it, for any resource.
func (g given) Token(context.Context, string) (string, error) {
	for _, r := range g {
		if r <= ' ' || r > '~' {
			return "", errors.New("access_token has characters that no token has")
		}
	}
	return string(g), nil
}

// otherEvidence makes the evidence of guests that are not of SNP; nil on SNP, and where there is none.
func (e *Endpoints) otherEvidence() func(context.Context, []byte) (maa.Evidence, error) {
	if e.attester == nil || e.attester.TEE() == "snp" {
		return nil
	}
	tee := e.attester.TEE()
	return func(ctx context.Context, runtime []byte) (maa.Evidence, error) {
		out := maa.Evidence{Kind: maa.TdxVM, RuntimeData: runtime}
		if tee != "tdx" {
			if !e.cfg.Insecure {
				return out, refuse(http.StatusNotImplemented, "this guest's evidence is of type %s, which Azure does not "+
					"attest; with insecure = true in azure.toml a fake gets it", tee)
			}
			out.Kind = maa.InsecureSample
		}
		data := maa.ReportData(runtime)
		text, err := e.attester.Evidence(ctx, data[:])
		if err != nil || tee != "tdx" {
			out.Report = text
			return out, err
		}
		ev, err := tdx.ParseEvidence(text)
		out.Report = ev.Report
		return out, err
	}
}

// token answers with a token for the caller's own keys.
func (e *Endpoints) token(ctx context.Context, c *policy.Container, body []byte) (any, error) {
	q, err := read(body, "maa_endpoint", "runtime_data")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(c.Workload.Azure.MAA, q.MAA) {
		return nil, refuse(http.StatusForbidden, "attestation failed: the policy does not name the attestation service "+
			"%.200q for container %s: containers[%s].workload.azure.maa", q.MAA, c.Name, c.Name)
	}
	if !json.Valid(q.runtime) {
		return nil, refuse(http.StatusBadRequest, "runtime_data is not JSON, which the attestation service wants")
	}
	t, err := e.guest(q.MAA, "").Attest(ctx, q.runtime)
	if err != nil {
		return nil, fmt.Errorf("attestation failed: %w", err)
	}
	return map[string]string{"token": t}, nil
}

// release answers with a key of the policy.
func (e *Endpoints) release(ctx context.Context, c *policy.Container, body []byte) (any, error) {
	q, err := read(body, "maa_endpoint", "akv_endpoint", "kid")
	if err != nil {
		return nil, err
	}
	k, err := e.released(ctx, c, q)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	text, err := jwk(k)
	return map[string]string{"key": string(text)}, err
}

// released gets a key of the policy.
func (e *Endpoints) released(ctx context.Context, c *policy.Container, q question) (*akv.Key, error) {
	if !slices.Contains(c.Workload.Azure.Keys, policy.AzureKey{KID: q.KID, Vault: q.Vault, MAA: q.MAA}) {
		return nil, refuse(http.StatusForbidden, "secure key release failed: the policy does not open key %.200q of %.200q "+
			"with attestation by %.200q to container %s: containers[%s].workload.azure.keys", q.KID, q.Vault, q.MAA, c.Name,
			c.Name)
	}
	id, err := akv.ParseKeyID("https://" + q.Vault + "/keys/" + q.KID)
	if err != nil {
		return nil, fmt.Errorf("secure key release failed: %w", err)
	}
	g := e.guest(q.MAA, q.Bearer)
	g.Key = e.keys.take
	k, err := g.Release(ctx, id, kwp.RSAAES256)
	if err != nil {
		return nil, fmt.Errorf("secure key release failed: releasing the key %s failed: %w", q.KID, err)
	}
	return k, nil
}

// jwk writes a key as a JSON Web Key.
func jwk(k *akv.Key) ([]byte, error) {
	var key any = k.Material
	if k.Kind != "oct" {
		var err error
		if key, err = x509.ParsePKCS8PrivateKey(k.Material); err != nil {
			return nil, errors.New("the released key is not PKCS #8")
		}
	}
	text, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err != nil || len(k.Ops) == 0 {
		return text, err
	}
	ops, err := json.Marshal(k.Ops)
	return slices.Concat([]byte(`{"key_ops":`), ops, []byte(","), bytes.TrimPrefix(text, []byte("{"))), err
}
