// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// Each switch that is insecure is told to the agent, which logs it, and none where there is none.
func TestInsecureSwitchesAreTold(t *testing.T) {
	const on = "insecure = true\n"
	unsigned, err := policy.Encode(&policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{
			Hostname: policy.Value{Is: new("h")}, Sealed: policy.Sealed{InsecureUnsigned: true},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	fake := fmt.Sprintf("%sca = '''\n%s'''\n", on, ca)
	const sends, nothing = "sends evidence of type sample", "changes nothing where evidence is of type tpm"
	for name, tc := range map[string]struct {
		tee   string
		files map[string]string
		want  []string // in each sentence
	}{
		"nothing":               {"sample", map[string]string{initdata.FileAA: broker}, nil},
		"aa.toml":               {"sample", map[string]string{initdata.FileAA: on + broker}, []string{"aa.toml says", sends}},
		"aa.toml, no broker":    {"sample", map[string]string{initdata.FileAA: on}, []string{"aa.toml says", sends}},
		"aa.toml, with a TPM":   {"tpm", map[string]string{initdata.FileAA: on + broker}, []string{"aa.toml says", nothing}},
		"azure.toml":            {"sample", map[string]string{initdata.FileAzure: fake}, []string{"azure.toml says", sends}},
		"azure.toml, refused":   {"sample", map[string]string{initdata.FileAzure: on}, nil}, // it has no CA
		"sealed without signer": {"tpm", map[string]string{policy.FileName: string(unsigned)}, []string{"insecureUnsigned"}},
		"all three": {"sample", map[string]string{
			initdata.FileAA: on, initdata.FileAzure: fake, policy.FileName: string(unsigned),
		}, nil},
		"a file with a mistake":   {"sample", map[string]string{initdata.FileAA: "insecure = 1\n"}, nil},
		"a policy with a mistake": {"sample", map[string]string{policy.FileName: "{"}, nil},
	} {
		d, err := initdata.New("sha256", tc.files)
		if err != nil {
			t.Fatal(err)
		}
		agent, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- Run(t.Context(), theirs, Devices{TPM: func() io.ReadWriter { return nil }}) }()
		if err := wire.Write(agent, wire.Setup{Initdata: string(d.Text), TEE: tc.tee}); err != nil {
			t.Fatal(err)
		}
		got := hello(t, agent).Insecure
		agent.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		number := min(len(tc.want), 1)
		if name == "all three" {
			number = 3
		}
		if len(got) != number {
			t.Errorf("%s: told %q, want %d sentences", name, got, number)
		}
		for _, part := range tc.want {
			if !strings.Contains(strings.Join(got, "\n"), part) {
				t.Errorf("%s: told %q, want %q", name, got, part)
			}
		}
	}
}
