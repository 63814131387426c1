// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
)

func TestWhatTheGuestPulls(t *testing.T) {
	const both = `{"containers":[{"name":"a","image":{"manifest":"sha256:1","layers":["x"],"pull":"r.example/a"}},` +
		`{"name":"b","image":{"manifest":"sha256:2","layers":["y"]}}]}`
	const one = `{"containers":[{"name":"main","image":{"manifest":"sha256:1","layers":["x"],"pull":"r.example/a"}}]}`
	named := func(name string) *specs.Spec {
		return &specs.Spec{Annotations: map[string]string{contract.CRIContainerName: name}}
	}
	for what, c := range map[string]struct {
		policy string
		spec   *specs.Spec
		want   string
	}{
		"its own":                   {both, named("a"), "r.example/a@sha256:1"},
		"the host's":                {both, named("b"), ""},
		"another":                   {both, named("c"), ""},
		"without a name, of two":    {both, &specs.Spec{}, ""},
		"without a name, of one":    {one, &specs.Spec{}, "r.example/a@sha256:1"},
		"no policy":                 {"", named("a"), ""},
		"a policy that is no JSON":  {both[1:], named("a"), ""},
		"a policy that pulls none":  {`{"containers":[{"name":"a","image":{"manifest":"sha256:1"}}]}`, named("a"), ""},
		"the word in another place": {`{"containers":[{"name":"a","process":{"args":["\"pull\":\""]}}]}`, named("a"), ""},
	} {
		d := &initdata.Document{Data: map[string]string{initdata.FilePolicy: c.policy}}
		if got := pullsOf(d).Of(c.spec); got != c.want {
			t.Errorf("%s: pulls %q, want %q", what, got, c.want)
		}
	}
	if got := pullsOf(nil).Of(named("a")); got != "" {
		t.Errorf("without initdata it pulls %q", got)
	}
	d := &initdata.Document{Data: map[string]string{initdata.FilePolicy: both}}
	if got := Parts(d); len(got) != 1 || got[0] != contract.PartTrust {
		t.Errorf("Parts() = %v", got)
	}
}
