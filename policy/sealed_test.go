// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

// sealedText has the form of a sealed text.
const sealedText = "sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA"

func TestTheFormOfSealedTexts(t *testing.T) {
	for text, want := range map[string]bool{
		sealedText: true, "sealed.fakejwsheader.eyJ0.fakesignature": true,
		"": false, "sealed.": false, "sealed.a.b": false, "sealed.a.b.c.d": false, "sealed.a.eyJ0.": false,
		"x" + sealedText: false, sealedText + "\n": false, sealedText + "=": false,
		"sealed.example.internal.svc": false, "sealed.a.exJ0.c": true, "sealed.a.eaJ0.c": false,
		"sealed.a.ey" + strings.Repeat("A", 1<<20) + ".c": false,
	} {
		if got := HasSyntax(TypeSealed, text); got != want {
			t.Errorf("HasSyntax(%q, %.80q) = %v, want %v", TypeSealed, text, got, want)
		}
	}
}

// sealedSample is a policy with a sealed variable and two sealed files.
func sealedSample() *Policy {
	p := sample()
	c := &p.Containers[0]
	c.Process.Env = append(c.Process.Env, Env{Name: "PASSWORD", Value: Value{Type: TypeSealed}})
	c.Mounts = append(c.Mounts,
		Mount{Destination: "/etc/db", Type: "bind", Source: Source{Volume: &Use{Name: "conf"}}},
		Mount{Destination: "/etc/one", Type: "bind", Source: Source{Copy: &Content{Rule: ContentUnpinned}}})
	const uri = "kbs:///default/db/password"
	c.Secrets = []Secret{
		{Resource: uri, Env: "PASSWORD", Sealed: true},
		{Resource: uri, File: "/etc/db/sub/password", Sealed: true},
		{Resource: uri, File: "/etc/one", Sealed: true},
	}
	coordinate := strings.Repeat("A", 43)
	p.Pod.Sealed.Signers = []Signer{
		{Kid: "kbs:///default/sealed/signer"}, {Kid: "team a", X: coordinate, Y: coordinate},
	}
	return p
}

func TestSealedSecretsOfAPolicy(t *testing.T) {
	const uri = "kbs:///default/db/password"
	c := func(p *Policy) *Container { return &p.Containers[0] }
	for name, tc := range map[string]struct {
		change func(p *Policy)
		want   string // "": valid
	}{
		"the sample": {func(*Policy) {}, ""},
		"a literal text": {func(p *Policy) {
			c(p).Process.Env[3].Value = Value{Is: new(sealedText)}
		}, ""},
		"one of two texts": {func(p *Policy) {
			c(p).Process.Env[3].Value = Value{OneOf: []string{sealedText, sealedText + "A"}}
		}, ""},
		"unsigned texts": {func(p *Policy) { p.Pod.Sealed = Sealed{InsecureUnsigned: true} }, ""},
		"a variable that may be plain": {func(p *Policy) {
			c(p).Process.Env[3].Value = Value{OneOf: []string{sealedText, "plain"}}
		}, `"PASSWORD" is no variable in process.env of type "sealed"`},
		"a variable of any text": {func(p *Policy) {
			c(p).Process.Env[3].Value = Value{Type: TypeAny}
		}, `"PASSWORD" is no variable in process.env of type "sealed"`},
		"no variable": {func(p *Policy) { c(p).Secrets[0].Env = "X" }, `"X" is no variable in process.env`},
		"a variable that nothing opens": {func(p *Policy) {
			c(p).Secrets = c(p).Secrets[1:]
		}, `"PASSWORD" is a sealed text, and no entry of secrets with sealed opens it`},
		"a literal text that nothing opens": {func(p *Policy) {
			c(p).Process.Env[1].Value = Value{Is: new(sealedText)}
		}, `"EMPTY" is a sealed text`},
		"a variable twice": {func(p *Policy) {
			c(p).Secrets = append(c(p).Secrets, c(p).Secrets[0])
		}, `opens "PASSWORD" a second time`},
		"a mode":                {func(p *Policy) { c(p).Secrets[1].Mode = "400" }, "has its own mode"},
		"a file and a variable": {func(p *Policy) { c(p).Secrets[1].Env = "PASSWORD" }, "both or none of file and env"},
		"a file in no mount":    {func(p *Policy) { c(p).Secrets[1].File = "/srv/x" }, "within a copied mount"},
		"a file in a mount of the kernel": {func(p *Policy) {
			c(p).Secrets[1].File = "/proc/x"
		}, "within a copied mount"},
		"a file on a disk": {func(p *Policy) { c(p).Secrets[1].File = "/cache/x" }, "within a copied mount"},
		"a file in a nearer mount that is no copy": {func(p *Policy) {
			c(p).Mounts = append(c(p).Mounts, Mount{
				Destination: "/etc/db/sub/", Type: "bind", Source: Source{Volume: &Use{Name: "cache"}},
			})
		}, "within a copied mount"},
		"a file that is not clean": {func(p *Policy) { c(p).Secrets[1].File = "/etc/db/../one" }, "no absolute path"},
		"nobody signs":             {func(p *Policy) { p.Pod.Sealed = Sealed{} }, "no sealed secret of the containers could"},
		"a signer without a kid":   {func(p *Policy) { p.Pod.Sealed.Signers[0].Kid = "" }, "is empty"},
		"a signer twice": {func(p *Policy) {
			p.Pod.Sealed.Signers[1] = p.Pod.Sealed.Signers[0]
		}, "comes a second time"},
		"a signer at another address": {func(p *Policy) {
			p.Pod.Sealed.Signers[0].Kid = "kbs://host/default/sealed/signer"
		}, "no URI such as"},
		"two keys of a signer": {func(p *Policy) {
			p.Pod.Sealed.Signers[0].X = strings.Repeat("A", 43)
		}, "which the key broker has"},
		"a signer without a key": {func(p *Policy) { p.Pod.Sealed.Signers[1].Y = "" }, "has no x and y of 32 bytes"},
		"too many signers": {func(p *Policy) {
			p.Pod.Sealed.Signers = make([]Signer, 17)
		}, "at most 16"},
		"a secret that is not sealed in a variable of the process": {func(p *Policy) {
			c(p).Secrets[0] = Secret{Resource: uri, Env: "NODE"}
		}, "is a variable of the process"},
	} {
		p := sealedSample()
		tc.change(p)
		err := p.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: Validate() = %v, want %q", name, err, tc.want)
		}
	}
	b := mustEncode(t, sealedSample())
	if _, err := Load(b); err != nil || !strings.Contains(string(b), `"sealed":{"signers":[{"kid":"kbs:///default/sealed`) {
		t.Errorf("Load() = %v of %s", err, b)
	}
}
