// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is one with field 1, made by another encoder than ours.
func message(text string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), text)
}

// fields reads a message by another decoder than ours.
func fields(t *testing.T, b []byte) map[protowire.Number]string {
	t.Helper()
	out := map[protowire.Number]string{}
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 || kind != protowire.BytesType {
			t.Fatalf("%x is no message of strings", b)
		}
		v, more := protowire.ConsumeBytes(b[size:])
		if more < 0 {
			t.Fatalf("%x is cut short", b)
		}
		out[n], b = string(v), b[size+more:]
	}
	return out
}

// request is that of a key provider's client for a layer whose key was encrypted.
func (p *pod) request(kid string, wrapped []byte) string {
	p.Helper()
	annotation, err := json.Marshal(map[string]any{
		"kid": kid, "wrapped_data": wrapped, "wrap_type": "rsa_3072", "kms_endpoint": p.vault, "attester_endpoint": p.maa,
	})
	if err != nil {
		p.Fatal(err)
	}
	enc := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`{"op":"keyunwrap","keywrapparams":{},"keyunwrapparams":{"dc":{"Parameters":{"attestation-agent":`+
		`[%q]}},"annotation":%q}}`, enc([]byte("skr")), enc(annotation))
}

// The calls of the sidecar's gRPC service answer as its README has them, each to the containers that it is opened to.
func TestTheKeyProvider(t *testing.T) {
	p := newPod(t, "snp", "endorsements = ['AQI=']")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.load("rsa", "sevsnpvm", key)
	p.load("oct", "sevsnpvm", secret)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, []byte("key of a layer"), nil)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(wrapped)
	other[9] ^= 1
	runtime := base64.StdEncoding.EncodeToString([]byte("x"))
	unwrapped := `{"keywrapresults":{"annotation":null},"keyunwrapresults":{"optsdata":"` +
		base64.StdEncoding.EncodeToString([]byte("key of a layer")) + `"}}`
	for _, tc := range []struct {
		of       int
		call, in string
		code     int
		want     string // in field 1, or in the text
	}{
		{0, "SayHello", "you", 0, "Hello you"},
		{1, "SayHello", "", 0, "Hello "},
		{0, "GetReport", "", 0, "e3b0c44298fc1c14"},
		{0, "GetAttestationData", runtime, 0, ""},
		{0, "UnWrapKey", p.request("rsa", wrapped), 0, unwrapped},
		{1, "UnWrapKey", p.request("rsa", wrapped), 0, unwrapped},
		{0, "UnWrapKey", p.request("rsa", other), codeUnknown, "was not encrypted for the released key"},
		{0, "UnWrapKey", p.request("oct", wrapped), codeUnknown, "is not an RSA private key"},
		{1, "UnWrapKey", p.request("oct", wrapped), codeDenied, `does not open key "oct"`},
		{0, "UnWrapKey", "{", codeInvalid, "Ill-formed key provider input"},
		{0, "UnWrapKey", "{}", codeInvalid, "attestation-agent must be specified"},
		{0, "UnWrapKey", strings.Replace(p.request("rsa", nil), "c2ty", "b3RoZXI=", 1), codeInvalid, "Unexpected"},
		{0, "GetAttestationData", "%", codeInvalid, "decoding base64-encoded runtime data"},
		{1, "GetReport", "", codeDenied, "does not open /key_provider.KeyProviderService/GetReport to container b"},
		{1, "GetAttestationData", runtime, codeDenied, "to container b"},
		{2, "SayHello", "you", codeDenied, "to container silent"},
		{0, "WrapKey", "{}", codeNoCall, "there is no call"},
	} {
		out, code, text := p.Call(t.Context(), &p.policy.Containers[tc.of], service+tc.call, message(tc.in))
		if code == codeOK {
			text = fields(t, out)[1]
		}
		if code != tc.code || !strings.Contains(text, tc.want) {
			t.Errorf("%s of %d, %q: %d %q, want %d %q", tc.call, tc.of, tc.in, code, text, tc.code, tc.want)
		}
	}
	out, _, text := p.Call(t.Context(), &p.policy.Containers[0], service+"GetAttestationData", message(runtime))
	if got := fields(t, out); len(got) != 4 || len(got[1]) != 16 || got[4] != "AQI=" {
		t.Errorf("attestation data: %v %s", got, text)
	}
	long := append([]byte{10}, bytes.Repeat([]byte{0xff}, 9)...)
	for _, bad := range [][]byte{{8, 1}, {10}, {10, 2, 0}, {10, 0, 10, 0}, append(long, 1)} {
		if _, code, _ := p.Call(t.Context(), &p.policy.Containers[0], service+"SayHello", bad); code != codeInvalid {
			t.Errorf("message %x: %d", bad, code)
		}
	}
	plain := newPod(t, "sample", "")
	c := &plain.policy.Containers[0]
	if _, code, _ := plain.Call(t.Context(), c, service+"GetReport", nil); code != codePrecondition {
		t.Errorf("off SNP: %d", code)
	}
}
