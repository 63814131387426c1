// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

const someHash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// sample uses most members of the format.
func sample() *Policy {
	return &Policy{
		APIVersion: APIVersion,
		Pod: Pod{
			Hostname: Value{Field: FieldPodName}, DNS: DNS{FromHost: true},
			Sysctls:     map[string]string{"net.core.somaxconn": "9"},
			Network:     Network{Interfaces: []Interface{{Name: "eth0", Addresses: []string{"10.0.0.2/24"}}}, Routes: true},
			PortForward: []uint16{8080}, WorkloadPort: 8006, Stats: true, SharedShm: true,
		},
		Volumes: []Volume{
			{Name: "cache", Kind: VolumeDisk, Mode: "777", GID: 5},
			{Name: "conf", Kind: VolumeCopy, Content: &Content{Rule: ContentDigest, Files: []File{{
				Path:   "a/b",
				SHA256: someHash,
			}}}},
			{Name: "tools", Kind: VolumeImage, Layers: []string{someHash}},
		},
		Containers: []Container{{
			Name: "web", Kind: App, Restart: Always, Image: Image{Manifest: "sha256:" + someHash, Layers: []string{someHash}},
			Process: Process{
				Args: []string{"/web", "<&>"}, Cwd: "/", User: User{UID: 1, Groups: []uint32{2}},
				Env: []Env{
					{Name: "PATH", Value: Value{Is: new("/bin")}},
					{Name: "EMPTY", Value: Value{Is: new("")}},
					{Name: "NODE", Value: Value{Field: FieldNodeName}, Optional: true},
				},
				Caps:    Caps{Bounding: []string{"CAP_KILL"}},
				Rlimits: Rlimits{Limits: []Rlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}},
			},
			Linux: Linux{
				Namespaces: []string{"mount", "ipc", "uts"}, Seccomp: []string{NoSeccomp},
				Masked:  Paths{Required: []string{"/proc/kcore"}, Optional: []string{"/proc/keys"}},
				Devices: []Device{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666}},
			},
			Mounts: []Mount{
				{Destination: "/proc", Type: "proc", Options: []string{"nosuid"}, Source: Source{Is: new("proc")}},
				{Destination: "/etc/hosts", Type: "bind", Source: Source{Copy: &Content{Rule: ContentUnpinned}}},
				{Destination: "/cache", Type: "bind", Source: Source{Volume: &Use{Name: "cache", SubPath: "a"}}},
			},
			Annotations: []Annotation{{Key: "k", Value: Value{Type: TypeID}}},
			Allow:       Capabilities{Logs: true, Exec: Exec{Commands: []Command{{Args: []string{"/probe"}}}}},
			Workload: Workload{
				Resources: []string{"kbs:///shop/db/password-1.2_x"}, Calls: []string{CallInfo, CallToken, CallEvidence},
				ExportKey: true, Evidence: EvidenceRaw,
			},
		}},
	}
}

func mustEncode(t testing.TB, p *Policy) []byte {
	t.Helper()
	b, err := Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLoadReadsWhatEncodeWrites(t *testing.T) {
	b := mustEncode(t, sample())
	p, err := Load(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), p); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Tools read what people write; the guest reads one form only.
func TestOtherSpacingIsForTools(t *testing.T) {
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, mustEncode(t, sample()), "", "  "); err != nil {
		t.Fatal(err)
	}
	p, err := Parse(spaced.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), p); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := Load(spaced.Bytes()); err == nil || !strings.Contains(err.Error(), "canonical") {
		t.Errorf("Load = %v, want a refusal", err)
	}
}

func TestOtherJSONIsRefused(t *testing.T) {
	good := string(mustEncode(t, sample()))
	for _, tc := range []struct{ name, old, new, want string }{
		{"an unknown member", `"stats":true`, `"stats":true,"more":1`, `unknown field "more"`},
		{"another case", `"stats":true`, `"Stats":true`, `unknown member "pod.Stats"`},
		{"a member twice", `"stats":true`, `"stats":true,"stats":true`, `"stats" twice`},
		{"null", `"stats":true`, `"stats":null`, "null"},
		{"a string for a number", `"uid":1`, `"uid":"1"`, "uid"},
		{"a negative user", `"uid":1`, `"uid":-1`, "uid"},
		{"a large port", `[8080]`, `[65536]`, "portForward"},
		{"another version", APIVersion, "coco.policy/v2", `known is "coco.policy/v1"`},
		{"something after it", `{"apiVersion"`, `{}{"apiVersion"`, "after top-level value"},
		{"deep nesting", `"stats":true`, `"stats":` + strings.Repeat("[", 5000), "nests deeper"},
		{"no UTF-8", `"/web"`, "\"/web\xff\"", "UTF-8"},
	} {
		b := []byte(strings.Replace(good, tc.old, tc.new, 1))
		if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Parse = %v, want an error with %q", tc.name, err, tc.want)
		}
		if p, err := Load(b); err == nil {
			t.Errorf("%s: Load = %v, want an error", tc.name, p)
		}
	}
	for _, text := range []string{"", "{", "null", "[]", "1", good + "x", good + "{}", strings.Repeat(" ", MaxSize+1)} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("Parse(%.20q) succeeded", text)
		}
	}
}

func TestValidateNamesTheMember(t *testing.T) {
	for _, tc := range []struct {
		spoil func(*Policy)
		want  string
	}{
		{func(p *Policy) { p.Pod.Hostname = Value{} }, "pod.hostname: has 0 members"},
		{func(p *Policy) { p.Pod.Hostname.Type = TypeAny }, "pod.hostname: has 2 members"},
		{func(p *Policy) { p.Pod.Network.Interfaces[0].Name = "lo" }, "pod.network.interfaces[0].name"},
		{func(p *Policy) { p.Pod.Network.Interfaces[0].Addresses[0] = "127.0.0.1/8" }, "interfaces[0].addresses"},
		{func(p *Policy) { p.Pod.DNS.Lines = []string{"x"} }, "pod.dns: has both"},
		{func(p *Policy) { p.Pod.PortForward[0] = 0 }, "pod.portForward"},
		{func(p *Policy) { p.Volumes[1].Name = "cache" }, "volumes[1].name"},
		{func(p *Policy) { p.Volumes[0].Content = &Content{} }, "volumes[0].content: a volume of kind"},
		{func(p *Policy) { p.Volumes[0].Mode = "0777" }, "volumes[0].mode"},
		{func(p *Policy) { p.Volumes[1].Content.Files[0].Path = "../x" }, "volumes[1].content.files[0]"},
		{func(p *Policy) { p.Volumes[1].Content.Keys = []string{"x"} }, "volumes[1].content.keys"},
		{func(p *Policy) { p.Volumes[2].Layers = nil }, "volumes[2].layers: is missing"},
		{func(p *Policy) { p.Containers[0].Kind = "" }, "containers[0].kind"},
		{func(p *Policy) { p.Containers[0].Restart = "always" }, "containers[0].restart"},
		{func(p *Policy) { p.Containers[0].Image.Manifest = "web:latest" }, "containers[0].image.manifest"},
		{func(p *Policy) { p.Containers[0].Image.Layers = nil }, "containers[0].image.layers: is empty"},
		{func(p *Policy) { p.Containers[0].Process.Args = nil }, "containers[0].process.args"},
		{func(p *Policy) { p.Containers[0].Process.Cwd = "/a/.." }, "containers[0].process.cwd"},
		{
			func(p *Policy) { p.Containers[0].Process.Env[0].Value = Value{Type: TypeAny} },
			"containers[0].process.env[0]: \"PATH\" decides",
		},
		{func(p *Policy) { p.Containers[0].Process.Env[1].Name = "PATH" }, "process.env[1].name"},
		{func(p *Policy) { p.Containers[0].Process.Env[2].Field = "x" }, "process.env[2].field"},
		{func(p *Policy) { p.Containers[0].Linux.Seccomp = nil }, "linux.seccomp: is empty"},
		{func(p *Policy) { p.Containers[0].Linux.Namespaces[0] = "user" }, "linux.namespaces"},
		{func(p *Policy) { p.Containers[0].Linux.PIDs = "web" }, "linux.pids"},
		{func(p *Policy) { p.Containers[0].Linux.Masked.Optional[0] = "/proc/kcore" }, "linux.masked"},
		{func(p *Policy) { p.Containers[0].Mounts[0].Destination = "proc" }, "mounts[0].destination"},
		{func(p *Policy) { p.Containers[0].Mounts[0].Source.Shm = true }, "mounts[0].source: has 2 members"},
		{func(p *Policy) { p.Containers[0].Mounts[2].Source.Volume.Name = "x" }, "mounts[2].source.volume.name"},
		{func(p *Policy) { p.Containers[0].Mounts[2].Source.Volume.SubPath = "/x" }, "mounts[2].source.volume.subPath"},
		{func(p *Policy) { p.Containers[0].Allow.Exec.Any = true }, "allow.exec: has both"},
		{func(p *Policy) { p.Containers[0].Allow.Exec.Commands[0].Args = nil }, "allow.exec.commands[0].args"},
		{func(p *Policy) { p.Pod.PortForward[0] = 8006 }, "pod.portForward: has 8006"},
		{func(p *Policy) { p.Containers[0].Workload = Workload{} }, "pod.workloadPort: is 8006, and no container"},
		{func(p *Policy) { p.Containers[0].Name = strings.Repeat("a", 63) + ".b" }, "workload: is of a container whose name"},
		{func(p *Policy) { p.Containers[0].Workload.Calls[0] = "aael" }, `workload.calls: is "aael"`},
		{func(p *Policy) { p.Containers[0].Workload.Calls[0] = CallToken }, `workload.calls: "token" comes a second time`},
		{func(p *Policy) { p.Containers[0].Workload.Calls[1] = "x" }, `workload.exportKey: is for the call "token"`},
		{func(p *Policy) { p.Containers[0].Workload.Calls = []string{CallToken} }, "workload.evidence: is for"},
		{func(p *Policy) { p.Containers[0].Workload.Evidence = "bound" }, "workload.evidence: is"},
		{func(p *Policy) { p.Containers = append(p.Containers, p.Containers[0]) }, "containers[1].name"},
		{func(p *Policy) {
			p.Containers = append(p.Containers, p.Containers[0])
			p.Containers[1].Kind, p.Containers[1].Name = Init, "i"
		}, "containers[1].kind: comes after"},
	} {
		p := sample()
		tc.spoil(p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Validate = %v, want an error with %q", err, tc.want)
		}
	}
	if err := sample().Validate(); err != nil {
		t.Error(err)
	}
}

// A resource has one spelling, so that a list of them is a list of secrets.
func TestResourcesHaveOneSpelling(t *testing.T) {
	for s, ok := range map[string]bool{
		"kbs:///a/b/c": true, "kbs:///A-1/_/c.d_e": true, "kbs:///" + strings.Repeat("a", 508) + "/b/c": true,
		"kbs:///" + strings.Repeat("a", 509) + "/b/c": false,
		"": false, "a/b/c": false, "/a/b/c": false, "kbs://host/a/b/c": false, "kbs:////a/b/c": false, "kbs:///a/b": false,
		"kbs:///a/b/c/d": false, "kbs:///a/b/": false, "kbs:///a//c": false, "kbs:///a/../c": false, "kbs:///a/.b/c": false,
		"kbs:///a/b/c?x": false, "kbs:///a/b/%63": false, "kbs:///a/b/c*": false, "KBS:///a/b/c": false,
		"kbs:///a/b/c\n": false,
		"kbs:///ä/b/c":   false,
	} {
		p := sample()
		p.Containers[0].Workload.Resources = []string{s}
		if err := p.Validate(); (err == nil) != ok {
			t.Errorf("%.40q: %v, want ok %v", s, err, ok)
		}
	}
	p := sample()
	p.Containers[0].Workload.Resources = []string{"kbs:///a/b/c", "kbs:///a/b/c"}
	if p.Validate() == nil {
		t.Error("a resource may stand twice")
	}
	if (Workload{}).Opens() || (&Policy{Containers: []Container{{}}}).UsesWorkloadAPI() {
		t.Error("the zero value opens something")
	}
}

func TestSyntaxes(t *testing.T) {
	for _, tc := range []struct {
		kind      string
		good, bad []string
	}{
		{TypeIP, []string{"10.0.0.1", "fd00::1"}, []string{"", "10.0.0.1/8", "fe80::1%eth0", "010.0.0.1"}},
		{TypeIPs, []string{"10.0.0.1,fd00::1"}, []string{"", "10.0.0.1,", "10.0.0.1, fd00::1"}},
		{TypePort, []string{"1", "65535"}, []string{"0", "65536", "+1", "01"}},
		{TypeNumber, []string{"0", "-7", "007"}, []string{"", "-", "--1", "1.5", strings.Repeat("1", 21)}},
		{TypeName, []string{"a", "a-b.c0"}, []string{"", "A", "-a", "a..b", "a\n", strings.Repeat("a", 64)}},
		{TypeUUID, []string{"01234567-89ab-cdef-0123-456789abcdef", someHash[:32]}, []string{"", someHash, "01234567-89ab"}},
		{
			TypeURL,
			[]string{"tcp://10.0.0.1:80", "udp://[fd00::1]:53"},
			[]string{"http://10.0.0.1:80", "tcp://x:80", "tcp://10.0.0.1"},
		},
		{TypeID, []string{"abc"}, []string{"", "a/b"}},
		{TypeAny, []string{"", "x y"}, []string{"a\nb", strings.Repeat("a", maxText+1)}},
	} {
		for _, s := range tc.good {
			if !syntax(tc.kind)(s) {
				t.Errorf("%q is no %s", s, tc.kind)
			}
		}
		for _, s := range tc.bad {
			if syntax(tc.kind)(s) {
				t.Errorf("%q is of type %s", s, tc.kind)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		key  any
		good bool
	}{{ec.Public(), true}, {ed, true}, {other.Public(), false}} {
		der, err := x509.MarshalPKIXPublicKey(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkKey(base64.StdEncoding.EncodeToString(der)); (err == nil) != tc.good {
			t.Errorf("checkKey(%T) = %v", tc.key, err)
		}
	}
}

// FuzzLoad: what is loaded is written again as the same bytes, and both readers agree on it.
func FuzzLoad(f *testing.F) {
	b := mustEncode(f, sample())
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"stats":true`), []byte(`"Stats":true`), 1))
	f.Add([]byte(`{"apiVersion":"` + APIVersion + `","pod":{"hostname":{"is":"a"}}}`))
	f.Add(mustEncode(f, pulling()))
	f.Add(bytes.Replace(mustEncode(f, pulling()), []byte(`"tag":"stable-1",`), nil, 1)) // a signed image has one
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		if p, err := Load(b); err == nil {
			again, err := Encode(p)
			if err != nil || !bytes.Equal(b, again) {
				t.Errorf("%s is written as %s, %v", b, again, err)
			}
			if q, err := Parse(b); err != nil || !cmp.Equal(p, q) {
				t.Errorf("Parse(%s) = %v, %v", b, q, err)
			}
		}
		if p, err := Parse(b); err == nil {
			if again, err := Encode(p); err != nil {
				t.Errorf("Parse admits what Encode refuses: %v\n%s", err, again)
			}
		}
	})
}
