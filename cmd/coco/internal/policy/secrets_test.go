// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/sealed"
	"github.com/coco-shim/coco/policy"
)

func TestSecretsOfAManifest(t *testing.T) {
	dir := place(t)
	base := filepath.Join(dir, "broker.toml")
	write(t, base, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\n"+
		"url = \"https://kbs\"\ncert = \"PEM\"\n'''\n")
	file, env := "web=kbs:///a/b/c,file=/run/secrets/c,mode=440,renew=1h", "web=kbs:///a/b/d,env=D"
	text, err := genPolicy(t, dir, "--output", "policy", "--initdata", base, "--secret", file, "--secret", env)
	must(t, text, err)
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Secret{
		{Resource: "kbs:///a/b/c", File: "/run/secrets/c", Mode: "440", Renew: "1h"}, {Resource: "kbs:///a/b/d", Env: "D"},
	}
	if got := p.Containers[0].Secrets; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("secrets are %+v, want %+v", got, want)
	}
	table, err := run(t, text, "show", "-")
	if must(t, table, err); !strings.Contains(table, "file /run/secrets/c, mode 440, renewed every 1h0m0s") {
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
		"web":                                  "is not CONTAINER=RESOURCE",
		"web=kbs:///a/b/c":                     "is not CONTAINER=RESOURCE",
		"web=kbs:///a/b/c,path=/x":             "is not file=PATH",
		"web=kbs:///a/b/c,file=":               "is not file=PATH",
		"web=kbs:///a/b/c,env=A,env=B":         "comes a second time",
		"other=kbs:///a/b/c,env=A":             `no pod has a container "other"`,
		"web=kbs:///a/b/c,env=LD_A":            "decides which code runs",
		"web=kbs:///a/b/c,file=/x,env=A":       "both or none of file and env",
		"web=kbs:///a/b/c,env=A":               "names no key broker",
		"web=kbs:///a/b/c,env=A,renew=1h":      "not for a variable",
		"web=kbs:///a/b/c,env=A,sealed":        "needs --signer",
		"web=kbs:///a/b/c,env=A,sealed,sealed": "comes a second time",
	} {
		if out, err := genPolicy(t, dir, "--secret", arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--secret %s: %v, want %q; %.100s", arg, err, want, out)
		}
	}
}

// sealedDeployment has a sealed text in a variable.
const sealedDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: web
        image: app:1
        env: [{name: SEALED, value: sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA}]
`

func TestSealedSecretsOfAManifest(t *testing.T) {
	dir := place(t)
	_, public, err := sealed.NewKey("team")
	if err != nil {
		t.Fatal(err)
	}
	base, key := filepath.Join(dir, "broker.toml"), filepath.Join(dir, "team.jwk")
	write(t, key, string(public))
	write(t, base, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\n"+
		"url = \"https://kbs\"\ncert = \"PEM\"\n'''\n")
	write(t, filepath.Join(dir, "web.yaml"), sealedDeployment)
	gen := func(more ...string) (string, error) {
		return genPolicy(t, dir, append([]string{"--output", "policy", "--initdata", base}, more...)...)
	}
	text, err := gen("--secret", "web=kbs:///a/b/c,env=SEALED,sealed", "--signer", "kbs:///a/b/signer", "--signer", key)
	must(t, text, err)
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Secret{Resource: "kbs:///a/b/c", Env: "SEALED", Sealed: true}
	if s := p.Containers[0].Secrets; len(s) != 1 || s[0] != want {
		t.Errorf("secrets are %+v", s)
	}
	signers := p.Pod.Sealed.Signers
	if len(signers) != 2 || signers[0] != (policy.Signer{Kid: "kbs:///a/b/signer"}) || signers[1].Kid != "team" ||
		signers[1].X == "" || !strings.Contains(string(public), signers[1].Y) {
		t.Errorf("signers are %+v", signers)
	}
	table, err := run(t, text, "show", "-")
	if must(t, table, err); !strings.Contains(table, "opens the sealed text in variable SEALED") ||
		!strings.Contains(table, "kbs:///a/b/signer") {
		t.Errorf("show = %s", table)
	}
	write(t, filepath.Join(dir, "none.jwk"), strings.Replace(string(public), `"kid":"team",`, "", 1))
	for name, tc := range map[string]struct {
		flags []string
		want  string
	}{
		"nothing is sealed":   {[]string{"--signer", "kbs:///a/b/c"}, "no --secret has the word sealed"},
		"a sealed text alone": {nil, "is a sealed text, and no entry of secrets with sealed opens it"},
		"no such variable": {
			[]string{"--secret", "web=kbs:///a/b/c,env=X,sealed", "--signer", "kbs:///a/b/c"}, "no variable in process.env",
		},
		"a file in no mount": {
			[]string{"--secret", "web=kbs:///a/b/c,file=/x,sealed", "--signer", "kbs:///a/b/c"}, "within a copied mount",
		},
		"a key without a kid": {[]string{"--signer", filepath.Join(dir, "none.jwk")}, "has no kid"},
		"no key":              {[]string{"--signer", base}, "no JWK"},
		"no file":             {[]string{"--signer", filepath.Join(dir, "absent")}, "no such file"},
	} {
		if out, err := gen(tc.flags...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q; %.100s", name, err, tc.want, out)
		}
	}
}
