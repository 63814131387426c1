// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/policy"
)

func TestALogIsJudgedInItsOrder(t *testing.T) {
	name := "web"
	p := &policy.Policy{APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &name}}}
	log := `{"kind":"CreateSandbox","request":{"hostname":"web","sandboxId":"a"}}

{"kind":"CreateSandboxRequest","request":{"hostname":"web","sandbox_id":"b"}}
{"kind":"Exited","request":{"container_id":"c","exit_code":1}}
{"kind":"SetPolicy"}
`
	got, err := Run(p, strings.NewReader(log))
	if err != nil || len(got) != 4 {
		t.Fatalf("Run = %v, %v", got, err)
	}
	for i, want := range []string{"", "denied [order]", "", "denied [method]"} {
		if (want == "") != (got[i].Denial == "") || !strings.HasPrefix(got[i].Denial, want) {
			t.Errorf("line %d: %q, want %q", got[i].Line, got[i].Denial, want)
		}
	}
	if got[1].Line != 3 {
		t.Errorf("the second request is on line %d, want 3", got[1].Line)
	}
}

func TestLinesThatCannotBeRead(t *testing.T) {
	p := &policy.Policy{}
	for text, want := range map[string]string{
		`{"kind":"Unknown"}`:                          "line 1: kind \"Unknown\" is no method",
		`{"kind":"CreateSandbox","request":{"no":1}}`: "unknown field",
		`{"kind":"CreateSandbox","other":1}`:          "unknown field",
		`{`:                                           "line 1",
		"\n" + `{"kind":"Exited","request":[]}`:       "line 2",
	} {
		if got, err := Run(p, strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run(%s) = %v, %v, want %q", text, got, err, want)
		}
	}
}
