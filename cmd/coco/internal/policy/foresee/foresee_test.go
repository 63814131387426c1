// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package foresee

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/foresee"
	"github.com/coco-shim/coco/policy"
)

// TestTheShimsQuestion: the answer is empty or the denial; what cannot be read is an error.
func TestTheShimsQuestion(t *testing.T) {
	hostname := "web"
	text, err := policy.Encode(&policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &hostname}},
	})
	if err != nil {
		t.Fatal(err)
	}
	question := func(p, hostname string, c *agent.CreateContainerRequest) []byte {
		t.Helper()
		q := foresee.Question{Policy: p}
		if q.Sandbox, err = proto.Marshal(&agent.CreateSandboxRequest{SandboxId: "a", Hostname: hostname}); err != nil {
			t.Fatal(err)
		}
		if c != nil {
			if q.Container, err = proto.Marshal(c); err != nil {
				t.Fatal(err)
			}
		}
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, tc := range map[string]struct {
		question []byte
		want     string
		fails    bool
	}{
		"the sandbox":     {question(string(text), "web", nil), "", false},
		"another sandbox": {question(string(text), "x", nil), "denied [value] hostname: ", false},
		"a container": {
			question(string(text), "web", &agent.CreateContainerRequest{ContainerId: "b"}), "denied [value] container: ", false,
		},
		"no policy":   {question("{}", "web", nil), "", true},
		"no question": {[]byte("x"), "", true},
	} {
		got, err := answer(tc.question)
		if (err != nil) != tc.fails || !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}
