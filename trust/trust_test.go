// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/trust/wire"
)

// document is initdata with an aa.toml.
func document(t *testing.T, aa string) string {
	t.Helper()
	d, err := initdata.New("sha256", map[string]string{initdata.FileAA: aa})
	if err != nil {
		t.Fatal(err)
	}
	return string(d.Text)
}

const broker = "[token_configs.kbs]\nurl = \"https://127.0.0.1:1\"\ndeadline = \"1s\"\n" +
	"cert = '''\n" + certificate + "'''\n"

// certificate is self-signed, of nobody.
const certificate = `-----BEGIN CERTIFICATE-----
MIIBZzCCAQygAwIBAgIBATAKBggqhkjOPQQDAjAQMQ4wDAYDVQQDEwVjYS5pdDAe
Fw0yNjAxMDEwMDAwMDBaFw0zNjAxMDEwMDAwMDBaMBAxDjAMBgNVBAMTBWNhLml0
-----END CERTIFICATE-----
`

// hello reads the first message of coco-trust.
func hello(t *testing.T, agent io.Reader) (h wire.Hello) {
	t.Helper()
	if err := wire.Read(agent, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// talk runs coco-trust for a Setup and returns its answer to one request.
func talk(t *testing.T, run func(conn io.ReadWriter) error, messages ...any) wire.Answer {
	t.Helper()
	agent, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(theirs) }()
	for _, m := range messages {
		if err := wire.Write(agent, m); err != nil {
			t.Fatal(err)
		}
		if _, ok := m.(wire.Setup); ok {
			hello(t, agent)
		}
	}
	var a wire.Answer
	if err := wire.Read(agent, &a); err != nil {
		t.Fatal(err)
	}
	agent.Close()
	if err := <-done; err != nil {
		t.Errorf("at the connection's end: %v", err)
	}
	return a
}

func TestWhatIsWrongInInitdataIsTheAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		setup wire.Setup
		want  string
	}{
		"no insecure": {wire.Setup{Initdata: document(t, broker), TEE: "sample"}, "does not say insecure = true"},
		"no broker":   {wire.Setup{Initdata: document(t, "insecure = true\n"), TEE: "sample"}, "names no key broker"},
		"no document": {wire.Setup{Initdata: "x", TEE: "sample"}, "initdata"},
		"no TPM":      {wire.Setup{Initdata: document(t, broker), TEE: "tpm"}, "without a TPM"},
		"an unknown platform": {
			wire.Setup{Initdata: document(t, broker), TEE: "sgx"}, `evidence of type "sgx" cannot be made`,
		},
		"a certificate that is none": {
			wire.Setup{Initdata: document(t, "insecure = true\n"+broker), TEE: "sample"}, "the broker's certificate",
		},
	} {
		a := talk(t, func(conn io.ReadWriter) error {
			return Run(t.Context(), conn, Devices{TPM: func() io.ReadWriter { return nil }})
		}, tc.setup, wire.Request{Resource: "kbs:///a/b/c"})
		if a.Error == nil || a.Error.Code != wire.Config || !strings.Contains(a.Error.Text, tc.want) || a.Secret != nil {
			t.Errorf("%s: %+v, want %q", name, a.Error, tc.want)
		}
	}
}

// keys answers like a broker.
type keys struct{ err error }

func (k keys) TEE() string { return "sample" }

func (k keys) Resource(_ context.Context, path string) ([]byte, error) {
	if k.err != nil {
		return nil, k.err
	}
	return []byte("secret of " + path), nil
}

func (k keys) Token(context.Context) (client.Token, error) { return client.Token{}, k.err }

func (k keys) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, k.err }

func TestTheBrokersReasonIsPassedOn(t *testing.T) {
	ask := func(err error) wire.Answer {
		return talk(t, func(conn io.ReadWriter) error { return Serve(t.Context(), conn, keys{err}, nil) },
			wire.Request{Resource: "kbs:///a/b/c"})
	}
	if a := ask(nil); a.Error != nil || string(a.Secret) != "secret of kbs:///a/b/c" {
		t.Errorf("%+v", a)
	}
	a := ask(&client.Error{Reason: client.Denied, Phase: "resource", Cause: errors.New("executables are contraindicated")})
	if a.Error == nil || a.Error.Error() != "[denied] key broker, resource: executables are contraindicated" {
		t.Errorf("%+v", a.Error)
	}
}
