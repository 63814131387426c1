// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/manifest"
	"github.com/coco-shim/coco/policy/gen/predict"
)

var update = flag.Bool("update", false, "write the golden policies")

// image is the image of all pods.
func image() Image {
	hash := func(c string) string { return strings.Repeat(c, 64) }
	return Image{
		Manifest: "sha256:" + hash("a"), Layers: []string{hash("1"), hash("2"), hash("1")},
		Config: predict.Image{
			Entrypoint: []string{"/app"}, Cmd: []string{"--default"}, Env: []string{"PATH=/bin", "LANG=C"}, User: "app:ignored",
			WorkingDir: "/srv/", Volumes: []string{"/data"},
			Passwd: []byte("root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"),
			Group:  []byte("more:x:2000:app\napp:x:1001:\n"),
		},
		Files: map[string][]policy.File{"/data": {{Path: "seed", SHA256: digest([]byte("seed"))}}},
	}
}

func parse(t testing.TB, text string) *manifest.Set {
	t.Helper()
	var set manifest.Set
	if err := set.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return &set
}

// generate makes the policy of the first workload.
func generate(t *testing.T, text string, o Options) (*policy.Policy, []string, error) {
	t.Helper()
	set := parse(t, text)
	images := map[string]Image{}
	for _, ref := range References(set.Workloads[0]) {
		images[ref] = image()
	}
	return Policy(Input{Workload: set.Workloads[0], Objects: set, Images: images, Options: o})
}

func TestPoliciesOfManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, _, err := generate(t, string(text), Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			enc := json.NewEncoder(&got)
			enc.SetIndent("", " ")
			enc.SetEscapeHTML(false)
			if err := enc.Encode(p); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".json"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s is not what is generated now (look at it, then go test -update): %s", golden, diff)
			}
			first, err := policy.Encode(p)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				again, _, err := generate(t, string(text), Options{})
				if err != nil {
					t.Fatal(err)
				}
				if b, err := policy.Encode(again); err != nil || !bytes.Equal(b, first) {
					t.Fatalf("the same manifest gives other bytes: %v", err)
				}
			}
			if _, err := policy.Load(first); err != nil {
				t.Errorf("Load: %v", err)
			}
		})
	}
}

func pod(spec string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns, labels: {l: v}}\n" +
		"spec: {automountServiceAccountToken: false, " +
		spec + "}\n"
}

func one(rest string) string { return pod("containers: [{name: c, image: i" + rest + "}]") }

const objectsText = `
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m, namespace: ns}
data: {K: v, L: w}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: ns}
stringData: {P: secret}
`

func TestEnvironments(t *testing.T) {
	is := func(s string) policy.Value { return policy.Value{Is: &s} }
	for _, tt := range []struct {
		name, env string
		want      map[string]policy.Value
	}{
		{"the image's", "", map[string]policy.Value{
			"PATH": is("/bin"), "LANG": is("C"), "HOSTNAME": is("p"),
		}},
		{
			"the pod's own comes last",
			", env: [{name: LANG, value: de}, {name: A, value: 1}, {name: A, value: '2'}]",
			map[string]policy.Value{
				"PATH": is("/bin"), "LANG": is("de"), "HOSTNAME": is("p"), "A": is("2"),
			},
		},
		{"expansion", ", env: [{name: A, value: x}, {name: B, value: $(A)-$$(A)-$(N)-$A}]", map[string]policy.Value{
			"PATH": is("/bin"), "LANG": is("C"), "HOSTNAME": is("p"), "A": is("x"), "B": is("x-$(A)-$(N)-$A"),
		}},
		{
			"objects", ", envFrom: [{prefix: P_, configMapRef: {name: m}}, {secretRef: {name: s}}], " +
				"env: [{name: P, valueFrom: " +
				"{configMapKeyRef: {name: m, key: L}}}, " +
				"{name: O, valueFrom: {secretKeyRef: {name: s, key: none, optional: true}}}]",
			map[string]policy.Value{
				"PATH": is("/bin"), "LANG": is("C"), "HOSTNAME": is("p"), "P_K": is("v"), "P_L": is("w"), "P": is("w"),
			},
		},
		{
			"the downward API", ", resources: {limits: {cpu: 1500m, memory: 1Gi}}, env: [" +
				"{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, " +
				"{name: L, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['l']\"}}}, " +
				"{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, " +
				"{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, {name: URL, value: 'http://$(IP)'}, " +
				"{name: S, value: $(X_SERVICE_HOST)}, " +
				"{name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, " +
				"{name: MEM, valueFrom: {resourceFieldRef: {resource: requests.memory, divisor: 1Mi}}}, " +
				"{name: DISK, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage}}}]",
			map[string]policy.Value{
				"PATH": is("/bin"), "LANG": is("C"), "HOSTNAME": is("p"), "NAME": is("p"), "L": is("v"),
				"IP": {Field: policy.FieldPodIP}, "NODE": {Field: policy.FieldNodeName}, "URL": {Type: policy.TypeAny},
				"S": {Type: policy.TypeAny}, "CPU": is("2"), "MEM": is("1024"), "DISK": {Type: policy.TypeNumber},
			},
		},
		{"a terminal", ", tty: true", map[string]policy.Value{
			"PATH": is("/bin"), "LANG": is("C"), "HOSTNAME": is("p"), "TERM": is("xterm"),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _, err := generate(t, one(tt.env)+objectsText, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]policy.Value{}
			for _, e := range p.Containers[0].Process.Env {
				got[e.Name] = e.Value
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func ids(uid, gid uint32, groups ...uint32) policy.User {
	return policy.User{UID: uid, GID: gid, Groups: groups}
}

func TestUsers(t *testing.T) {
	for _, tt := range []struct {
		name, sc string
		want     policy.User
	}{
		{"of the image, by name, without its group", "", ids(1000, 1001, []uint32{1001, 2000}...)},
		{"of the pod, who is in passwd", "runAsUser: 1000", ids(1000, 1001, []uint32{1001, 2000}...)},
		{"of the pod, who is not", "runAsUser: 5", ids(5, 0, []uint32{0}...)},
		{"group", "runAsUser: 5, runAsGroup: 6", ids(5, 6, []uint32{6}...)},
		{"group of a user by name", "runAsGroup: 6", ids(1000, 6, []uint32{6, 2000}...)},
		{"more groups", "fsGroup: 9, supplementalGroups: [8, 2000]", ids(1000, 1001, []uint32{8, 9, 1001, 2000}...)},
		{"strict", "supplementalGroupsPolicy: Strict, fsGroup: 9", ids(1000, 1001, []uint32{9, 1001}...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _, err := generate(t, pod("securityContext: {"+tt.sc+"}, containers: [{name: c, image: i}]"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, p.Containers[0].Process.User); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestArgumentsAndCapabilities(t *testing.T) {
	for rest, want := range map[string][]string{
		"":                                    {"/app", "--default"},
		", args: [x]":                         {"/app", "x"},
		", command: [run]":                    {"run"},
		", command: [run], args: ['$(LANG)']": {"run", "$(LANG)"}, // kubelet does not know the image's variables
	} {
		p, _, err := generate(t, one(rest), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Containers[0].Process.Args; !slices.Equal(got, want) {
			t.Errorf("%s: args = %q, want %q", rest, got, want)
		}
	}
	for caps, want := range map[string][]string{
		"drop: [ALL]": nil,
		"drop: [ALL], add: [NET_BIND_SERVICE, CHOWN]": {"CAP_NET_BIND_SERVICE", "CAP_CHOWN"},
	} {
		p, _, err := generate(t, one(", securityContext: {capabilities: {"+caps+"}}"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := p.Containers[0].Process.Caps
		if !slices.Equal(c.Effective, want) || !slices.Equal(c.Bounding, want) || len(c.Ambient)+len(c.Inheritable) > 0 {
			t.Errorf("%s: %+v, want %v", caps, c, want)
		}
	}
	p, _, err := generate(t, one(", securityContext: {capabilities: {add: [ALL], drop: [SYS_ADMIN]}}"), Options{})
	if err != nil || len(p.Containers[0].Process.Caps.Bounding) != 40 {
		t.Errorf("all capabilities but one: %v, %v", p, err)
	}
}

func TestRefusals(t *testing.T) {
	mounts := "containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}], "
	for _, tt := range []struct{ text, want string }{
		{
			pod("hostNetwork: true, containers: [{name: c, image: i}]"),
			"hostNetwork: a VM cannot give",
		},
		{
			one(", securityContext: {privileged: true}"),
			"add the capabilities that it needs",
		},
		{
			one(", args: ['$(IP)'], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"),
			`argument 1, "podIP", depends on podIP`,
		},
		{
			one(", envFrom: [{configMapRef: {name: none}}]"),
			`ConfigMap "none" is not among the manifests`,
		},
		{
			one(", env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: none}}}]"),
			`Secret "s" has no key "none"`,
		},
		{
			one(", env: [{name: LD_PRELOAD, value: $(A_SERVICE_HOST)}]"),
			"decides which code runs",
		},
		{
			one(", volumeMounts: [{name: v, mountPath: /v}]"),
			`the pod has no volume "v"`,
		},
		{
			one(", securityContext: {runAsNonRoot: true, runAsUser: 0}"),
			"kubelet would not start it",
		},
		{
			one(", securityContext: {seccompProfile: {type: Localhost, localhostProfile: x}}"),
			`the file "x" of the node`,
		},
		{
			pod(mounts + "volumes: [{name: v, hostPath: {path: /x}}]"),
			"a confidential guest takes no files of the host",
		},
		{
			pod(mounts + "volumes: [{name: v, persistentVolumeClaim: {claimName: none}}]"),
			"claim a raw block (volumeMode: Block)",
		},
		{
			pod("containers: [{name: c, image: i, volumeDevices: [{name: v, devicePath: /dev/x}]}], " +
				"volumes: [{name: v, emptyDir: {}}]"),
			"volume v is no claim",
		},
		{
			one(", volumeDevices: [{name: v, devicePath: /dev/x}]"),
			`device /dev/x: the pod has no volume "v"`,
		},
		{
			pod("containers: [{name: c, image: i}], volumes: [{name: v, configMap: {name: none}}]"),
			"--allow-unpinned",
		},
	} {
		if p, _, err := generate(t, tt.text+objectsText, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Policy = %v, %v, want an error with %q", tt.text, p, err, tt.want)
		}
	}
}

func TestManifestsAreReadStrictly(t *testing.T) {
	for text, want := range map[string]string{
		one(", comand: [x]"):                               `unknown field "comand"`,
		one("") + "---\nmetadata: {name: x}\n":             "has no kind",
		"apiVersion: v1\nkind: Pod\nkind: Pod\nspec: {}\n": "already set",
	} {
		var set manifest.Set
		if err := set.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, want %q", text, err, want)
		}
	}
	set := parse(t, "# nothing\n---\napiVersion: v1\nkind: List\nitems:\n"+
		"- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}\n"+
		"- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service, metadata: {name: s}}]}\n")
	if len(set.Workloads) != 1 || set.Workloads[0].String() != "Pod a" {
		t.Errorf("Parse of a list = %v", set.Workloads)
	}
}

func TestOpenedCapabilities(t *testing.T) {
	text := one(", ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}], " +
		"livenessProbe: {exec: {command: [check, $(A)]}}," +
		" lifecycle: {preStop: {exec: {command: [bye, $(A)]}}}, env: [{name: A, value: a}]")
	p, _, err := generate(t, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Capabilities{Exec: policy.Exec{Commands: []policy.Command{
		{Args: []string{"check", "a"}}, {Args: []string{"bye", "$(A)"}},
	}}}
	if diff := cmp.Diff(want, p.Containers[0].Allow); diff != "" || p.Pod.PortForward != nil || p.Pod.Stats {
		t.Errorf("closed: %s, %+v", diff, p.Pod)
	}
	all := Allow{Exec: true, Logs: true, Stdin: true, Stats: true, Copy: true, Debug: true, PortForward: true}
	p, _, err = generate(t, text, Options{Allow: all})
	if err != nil {
		t.Fatal(err)
	}
	want = policy.Capabilities{Exec: policy.Exec{Any: true}, Logs: true, Stdin: true}
	if diff := cmp.Diff(want, p.Containers[0].Allow); diff != "" || !p.Pod.Debug || !p.Pod.Copy ||
		!slices.Equal(p.Pod.PortForward, []uint16{80}) {
		t.Errorf("open: %s, %+v", diff, p.Pod)
	}
}
