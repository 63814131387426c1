// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/coco-shim/coco/azure/maa"
	"github.com/coco-shim/coco/policy"
)

// Codes of gRPC.
const (
	codeOK           = 0
	codeUnknown      = 2
	codeInvalid      = 3
	codeDenied       = 7
	codePrecondition = 9
	codeNoCall       = 12
	codeInternal     = 13
)

// service begins the paths of gRPC.
const service = "/key_provider.KeyProviderService/"

// rpc is a call of gRPC: fields of a message in, fields out, the first has number 1. All of them are of the wire type
// for bytes and strings.
type rpc struct {
	opens func(*policy.Azure) bool
	serve func(*Endpoints, context.Context, *policy.Container, string) ([]string, error)
}

var rpcs = map[string]rpc{
	service + "SayHello":           {(*policy.Azure).Opens, (*Endpoints).hello},
	service + "GetReport":          {with(policy.AzureRaw), (*Endpoints).getReport},
	service + "GetAttestationData": {with(policy.AzureCombined), (*Endpoints).getData},
	service + "UnWrapKey":          {hasKeys, (*Endpoints).unwrapKey},
}

// Call answers a call of gRPC with a message, or with a code other than 0 and its text.
func (e *Endpoints) Call(ctx context.Context, c *policy.Container, path string, message []byte) ([]byte, int, string) {
	out, err := e.call(ctx, c, path, message)
	if err == nil {
		return encode(out), codeOK, ""
	}
	code := codeUnknown
	var no *refusal
	if errors.As(err, &no) {
		code = map[int]int{
			http.StatusBadRequest: codeInvalid, http.StatusForbidden: codeDenied, http.StatusNotFound: codeDenied,
			http.StatusNotImplemented: codePrecondition, http.StatusMethodNotAllowed: codeNoCall,
		}[no.status]
		if code == codeOK {
			code = codeInternal
		}
	}
	return nil, code, strings.ToValidUTF8(err.Error(), "?")
}

func (e *Endpoints) call(ctx context.Context, c *policy.Container, path string, message []byte) ([]string, error) {
	r, ok := rpcs[path]
	switch {
	case !ok:
		return nil, refuse(http.StatusMethodNotAllowed, "there is no call %.100q: there are SayHello, GetReport, "+
			"GetAttestationData and UnWrapKey", path)
	case !r.opens(&c.Workload.Azure):
		return nil, refuse(http.StatusForbidden, "the policy does not open %s to container %s: containers[%s].workload.azure",
			path, c.Name, c.Name)
	case e.broken != nil:
		return nil, refuse(http.StatusInternalServerError, "[config] %v", e.broken)
	}
	in, err := decode(message)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	return r.serve(e, ctx, c, in)
}

// decode reads a message with field 1 or without any.
func decode(b []byte) (string, error) {
	const field = 1<<3 | 2 // number 1, bytes
	if len(b) == 0 {
		return "", nil
	}
	n, size := binary.Uvarint(b[1:])
	if b[0] != field || size <= 0 || uint64(len(b)-1-size) != n { //nolint:gosec // it is not negative
		return "", refuse(http.StatusBadRequest, "the message is not one with field 1 alone")
	}
	return string(b[1+size:]), nil
}

// encode writes a message with these fields.
func encode(fields []string) (out []byte) {
	for i, f := range fields {
		if f != "" {
			out = append(out, byte(i+1)<<3|2)
			out = append(binary.AppendUvarint(out, uint64(len(f))), f...)
		}
	}
	return out
}

func (e *Endpoints) hello(_ context.Context, _ *policy.Container, name string) ([]string, error) {
	return []string{"Hello " + name}, nil
}

// getReport hashes the text that it is given, as the sidecar does: no caller chooses all of the report's data.
func (e *Endpoints) getReport(ctx context.Context, _ *policy.Container, text string) ([]string, error) {
	r, err := e.report(ctx, maa.ReportData([]byte(text)))
	return []string{hex.EncodeToString(r)}, err
}

func (e *Endpoints) getData(ctx context.Context, _ *policy.Container, runtime string) ([]string, error) {
	data, err := base64.StdEncoding.DecodeString(runtime)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "decoding base64-encoded runtime data of request failed: %v", err)
	}
	d, err := e.attested(ctx, data)
	return []string{d["endorsed_tcb"], d["endorsements"], d["evidence"], d["uvm_endorsements"]}, err
}

// unwrapInput is the JSON of ocicrypt's key providers, as far as it is read.
type unwrapInput struct {
	Op     string `json:"op"`
	Params struct {
		DC struct {
			Parameters map[string][]string
		} `json:"dc"`
		Annotation string `json:"annotation"`
	} `json:"keyunwrapparams"`
}

// packet is the annotation of a layer.
type packet struct {
	KID     string `json:"kid"`
	Wrapped []byte `json:"wrapped_data"`
	Vault   string `json:"kms_endpoint"`
	MAA     string `json:"attester_endpoint"`
}

// unwrapKey decrypts the key of an image's layer by an RSA key of the vault.
func (e *Endpoints) unwrapKey(ctx context.Context, c *policy.Container, text string) ([]string, error) {
	p, err := readPacket(text)
	if err != nil {
		return nil, err
	}
	k, err := e.released(ctx, c, question{MAA: host(p.MAA), Vault: host(p.Vault), KID: p.KID})
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	parsed, err := x509.ParsePKCS8PrivateKey(k.Material)
	key, ok := parsed.(*rsa.PrivateKey)
	if k.Kind != "RSA" || err != nil || !ok {
		return nil, errors.New("unwrapping failed: the released key is not an RSA private key")
	}
	plain, err := rsa.DecryptOAEP(sha256.New(), nil, key, p.Wrapped, nil)
	if err != nil {
		return nil, errors.New("unwrapping failed: wrapped_data was not encrypted for the released key, or altered")
	}
	defer clear(plain)
	var out struct {
		Wrap struct {
			Annotation []byte `json:"annotation"`
		} `json:"keywrapresults"`
		Unwrap struct {
			Data []byte `json:"optsdata"`
		} `json:"keyunwrapresults"`
	}
	out.Unwrap.Data = plain
	answer, err := json.Marshal(out)
	return []string{string(answer)}, err
}

// readPacket reads the request of a key provider's client.
func readPacket(text string) (p packet, err error) {
	var in unwrapInput
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return p, refuse(http.StatusBadRequest, "Ill-formed key provider input: %v", err)
	}
	agent := in.Params.DC.Parameters["attestation-agent"]
	if len(agent) == 0 {
		return p, refuse(http.StatusBadRequest, "attestation-agent must be specified in decryption config parameters")
	}
	if name, err := base64.StdEncoding.DecodeString(agent[0]); err != nil || !strings.EqualFold(string(name), "skr") {
		return p, refuse(http.StatusBadRequest, "Unexpected attestation agent %.40q specified", name)
	}
	b, err := base64.StdEncoding.DecodeString(in.Params.Annotation)
	if err != nil {
		return p, refuse(http.StatusBadRequest, "Annotation is not a base64 encoding: %v", err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, refuse(http.StatusBadRequest, "Ill-formed annotation packet: %v", err)
	}
	return p, nil
}
