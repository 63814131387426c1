// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/policy"
)

func TestSecretsOfAManifest(t *testing.T) {
	dir := place(t)
	base := filepath.Join(dir, "broker.toml")
	write(t, base, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\n"+
		"url = \"https://kbs\"\ncert = \"PEM\"\n'''\n")
	file, env := "web=kbs:///a/b/c,file=/run/secrets/c,mode=440", "web=kbs:///a/b/d,env=D"
	text, err := genPolicy(t, dir, "--output", "policy", "--initdata", base, "--secret", file, "--secret", env)
	must(t, text, err)
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Secret{
		{Resource: "kbs:///a/b/c", File: "/run/secrets/c", Mode: "440"}, {Resource: "kbs:///a/b/d", Env: "D"},
	}
	if got := p.Containers[0].Secrets; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("secrets are %+v, want %+v", got, want)
	}
	table, err := run(t, text, "show", "-")
	if must(t, table, err); !strings.Contains(table, "file /run/secrets/c, mode 440") {
		t.Errorf("show = %s", table)
	}
	lint, err := run(t, text, "lint", "-")
	if err != nil || !strings.Contains(lint, "secret kbs:///a/b/d is a variable") {
		t.Errorf("lint = %s, %v", lint, err)
	}
	plain, err := genPolicy(t, dir, "--output", "policy")
	must(t, plain, err)
	write(t, filepath.Join(dir, "plain.coco"), plain)
	diff, err := run(t, text, "diff", filepath.Join(dir, "plain.coco"), "-")
	if err == nil || !strings.Contains(diff, "+ containers[web].secrets[/run/secrets/c].mode: \"440\"\n") {
		t.Errorf("diff = %s, %v", diff, err)
	}
}

func TestSecretsThatGenRefuses(t *testing.T) {
	dir := place(t)
	for arg, want := range map[string]string{
		"web":                            "is not CONTAINER=RESOURCE",
		"web=kbs:///a/b/c":               "is not CONTAINER=RESOURCE",
		"web=kbs:///a/b/c,path=/x":       "is not file=PATH",
		"web=kbs:///a/b/c,file=":         "is not file=PATH",
		"web=kbs:///a/b/c,env=A,env=B":   "comes a second time",
		"other=kbs:///a/b/c,env=A":       `no pod has a container "other"`,
		"web=kbs:///a/b/c,env=LD_A":      "decides which code runs",
		"web=kbs:///a/b/c,file=/x,env=A": "both or none of file and env",
		"web=kbs:///a/b/c,env=A":         "names no key broker",
	} {
		if out, err := genPolicy(t, dir, "--secret", arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--secret %s: %v, want %q; %.100s", arg, err, want, out)
		}
	}
}
