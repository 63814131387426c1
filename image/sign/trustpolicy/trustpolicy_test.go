// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trustpolicy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = `{
  "default": [{"type": "reject"}],
  "transports": {
    "docker": {
      "registry.example/team": [{"type": "sigstoreSigned", "keyPath": "file:///keys/team.pub",
        "signedIdentity": {"type": "matchRepository"}}],
      "registry.example/team/app": [{"type": "sigstoreSigned", "keyData": "a2V5",
        "signedIdentity": {"type": "exactRepository", "dockerRepository": "upstream.example/app"}}],
      "registry.example/team/app:debug": [{"type": "reject"}],
      "*.open.example": [{"type": "insecureAcceptAnything"}]
    },
    "docker-archive": {"": [{"type": "insecureAcceptAnything"}]}
  }
}`

func TestTheLongestScopeCounts(t *testing.T) {
	p, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	reject, open := []Requirement{{Kind: Reject}}, []Requirement{{Kind: AcceptAnything}}
	team := []Requirement{{Kind: Signed, KeyPath: "file:///keys/team.pub"}}
	app := []Requirement{{Kind: Signed, KeyData: []byte("key"), Repository: "upstream.example/app"}}
	for name, want := range map[string][]Requirement{
		"registry.example/team/app:1":      app,
		"registry.example/team/app:debug":  reject,
		"registry.example/team/apple:1":    team,
		"registry.example/team/a/b:1":      team,
		"registry.example/teams:1":         reject,
		"other.example/team/app:1":         reject,
		"a.open.example/x:1":               open,
		"a.b.open.example:5000/x:1":        open,
		"open.example/x:1":                 reject,
		"notopen.example/x:1":              reject,
		"evil.example/a.open.example/x:1":  reject,
		"a.open.example.evil.example/x:1":  reject,
		"registry.example.evil/team/app:1": reject,
	} {
		colon := strings.LastIndexByte(name, ':')
		if diff := cmp.Diff(want, p.For(name[:colon], name[colon:])); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if got := (&Policy{}).For("a.example/b", ":1"); len(got) != 1 || got[0].Kind != Reject {
		t.Errorf("the zero policy: %v", got)
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	wrap := func(r string) string { return `{"default":[` + r + `]}` }
	const identity = `"signedIdentity":{"type":"matchRepository"}`
	for text, want := range map[string]string{
		`{}`:             "no list of requirements",
		`{"default":[]}`: "empty",
		wrap(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}`):                                                      "signedBy",
		wrap(`{"type":"sigstoreSigned","keyPath":"/k"}`):                                                                    "no signedIdentity",
		wrap(`{"type":"sigstoreSigned",` + identity + `}`):                                                                  "exactly one",
		wrap(`{"type":"sigstoreSigned","keyPath":"/k","keyData":"a2V5",` + identity + `}`):                                  "exactly one",
		wrap(`{"type":"sigstoreSigned","fulcio":{},` + identity + `}`):                                                      "fulcio",
		wrap(`{"type":"sigstoreSigned","keyData":"%",` + identity + `}`):                                                    "base64",
		wrap(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact"}}`):                             "matchExact",
		wrap(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactRepository"}}`):                        "dockerRepository",
		wrap(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchRepository","dockerRepository":"x"}}`): "known are",
		wrap(`{"type":"reject","type":"insecureAcceptAnything"}`):                                                           "twice",
		wrap(`{"type":"insecureAcceptAnything","keyPath":"/k"}`):                                                            "keyPath",
		wrap(`{"type":"allow"}`):                                                              `"allow"`,
		`{"default":[{"type":"reject"}],"transport":{}}`:                                      "transport",
		`{"default":[{"type":"reject"}],"transports":{"docker":[]}}`:                          "not a JSON object",
		`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"signedBy"}]}}}`: "signedBy",
		strings.Repeat(" ", MaxSize+1):                                                        "bytes",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.150s: %v, want %q", text, err, want)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		for _, list := range append([][]Requirement{p.standard}, p.For("a.example/b", ":1")) {
			if len(list) == 0 {
				t.Error("an image without requirements")
			}
			for _, r := range list {
				if r.Kind == Signed && (r.KeyPath == "") == (r.KeyData == nil) {
					t.Errorf("%+v", r)
				}
			}
		}
	})
}
