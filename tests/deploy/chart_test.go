// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	node "k8s.io/api/node/v1"
	rbac "k8s.io/api/rbac/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/coco-shim/coco/tests/harness"
)

const chart = "deploy/helm/coco"

// good are values that the schema takes.
const good = `
image: {repository: registry.example/coco, digest: "sha256:` +
	`0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}
nodes: [n1, n2.example]
`

// helm runs the pinned helm with values on standard input.
func helm(t *testing.T, values string, args ...string) (string, error) {
	t.Helper()
	program := filepath.Join(harness.Root(), "dist/tools/helm")
	if _, err := os.Stat(program); err != nil {
		t.Skip("helm is not built: make helm")
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Args = append(cmd.Args, "-f", "-")
	cmd.Stdin = strings.NewReader(values)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %v: %w: %s", args, err, errs.String())
	}
	return out.String(), nil
}

func template(t *testing.T, values string) (string, error) {
	t.Helper()
	return helm(t, values, "template", "rel", filepath.Join(harness.Root(), chart), "-n", "coco-system", "--kube-version",
		"1.37.0")
}

// objects decodes a chart's output as the API server would, without unknown fields, by kind.
func objects(t *testing.T, text string) map[string][]any {
	t.Helper()
	out := map[string][]any{}
	for part := range strings.SplitSeq(text, "\n---\n") {
		var head struct{ Kind string }
		if err := kyaml.Unmarshal([]byte(part), &head); err != nil {
			t.Fatalf("%v in\n%s", err, part)
		}
		into, known := map[string]any{
			"Job": &batch.Job{}, "ServiceAccount": &core.ServiceAccount{}, "ClusterRole": &rbac.ClusterRole{},
			"ClusterRoleBinding": &rbac.ClusterRoleBinding{}, "NetworkPolicy": &networking.NetworkPolicy{},
			"RuntimeClass": &node.RuntimeClass{},
		}[head.Kind]
		if head.Kind == "" {
			continue // comments
		}
		if !known {
			t.Fatalf("kind %q is not expected", head.Kind)
		}
		if err := kyaml.UnmarshalStrict([]byte(part), into); err != nil {
			t.Errorf("%s: %v in\n%s", head.Kind, err, part)
		}
		out[head.Kind] = append(out[head.Kind], into)
	}
	return out
}

func TestHelmLint(t *testing.T) {
	out, err := helm(t, good, "lint", "--strict", filepath.Join(harness.Root(), chart))
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWhatTheChartMakes(t *testing.T) {
	text, err := template(t, good+"install: {aliases: {kata-qemu-snp: coco-snp}, enableCRI: true}\n"+
		"startupTaint: coco.dev/installing\n")
	if err != nil {
		t.Fatal(err)
	}
	o := objects(t, text)
	if len(o["Job"]) != 2 || len(o["RuntimeClass"]) != 6 || len(o["NetworkPolicy"]) != 1 {
		t.Fatalf("kinds and their numbers are %v", lengths(o))
	}
	names := map[string]bool{}
	for i, n := range []string{"n1", "n2.example"} {
		j := o["Job"][i].(*batch.Job)
		names[j.Name] = true
		checkJob(t, j, n)
	}
	if len(names) != 2 {
		t.Errorf("the Jobs are called %v", names)
	}
	role := o["ClusterRole"][0].(*rbac.ClusterRole).Rules
	want := []rbac.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"nodes"}, ResourceNames: []string{"n1", "n2.example"},
		Verbs: []string{"get", "patch"},
	}}
	if !reflect.DeepEqual(role, want) {
		t.Errorf("the installer may %v", role)
	}
	p := o["NetworkPolicy"][0].(*networking.NetworkPolicy).Spec
	if len(p.Ingress) != 0 || len(p.PolicyTypes) != 2 || len(p.Egress) != 1 || len(p.Egress[0].Ports) != 2 {
		t.Errorf("the network policy is %v", p)
	}
}

func lengths(o map[string][]any) map[string]int {
	out := map[string]int{}
	for kind, list := range o {
		out[kind] = len(list)
	}
	return out
}

// checkJob holds that the container that changes the node has no credentials, and the one that has them no privilege.
func checkJob(t *testing.T, j *batch.Job, on string) {
	t.Helper()
	s := j.Spec.Template.Spec
	if len(s.InitContainers) != 1 || len(s.Containers) != 1 {
		t.Fatalf("Job %s has the containers %v, %v", j.Name, s.InitContainers, s.Containers)
	}
	install, announce := s.InitContainers[0], s.Containers[0]
	mounts := func(c core.Container) (names []string) {
		for _, m := range c.VolumeMounts {
			names = append(names, m.Name)
		}
		return names
	}
	if !slices.Equal(mounts(install), []string{"host"}) || !slices.Equal(mounts(announce), []string{"account"}) ||
		*s.AutomountServiceAccountToken {
		t.Errorf("Job %s mounts %v and %v", j.Name, mounts(install), mounts(announce))
	}
	sc := announce.SecurityContext
	if sc.Privileged != nil || !*sc.RunAsNonRoot || *sc.AllowPrivilegeEscalation || !*sc.ReadOnlyRootFilesystem {
		t.Errorf("Job %s announces with %v", j.Name, sc)
	}
	field := s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0]
	if field.Key != "metadata.name" || !slices.Equal(field.Values, []string{on}) {
		t.Errorf("Job %s goes to %v, not to %s", j.Name, field, on)
	}
	args := strings.Join(install.Args[1:], " ")
	wantArgs := "install node install --prefix /opt/coco --keep 1 --enable-cri --alias kata-qemu-snp=coco-snp"
	if args != wantArgs {
		t.Errorf("Job %s runs %s", j.Name, args)
	}
	wantArgs = "node announce --node " + on + " --label coco.dev/runtime=true --handler " +
		"coco,coco-snp,coco-tdx,coco-clh,coco-clh-snp,kata-qemu-snp --timeout 5m --remove-taint coco.dev/installing"
	if args := strings.Join(announce.Args, " "); args != wantArgs {
		t.Errorf("Job %s announces by %s", j.Name, args)
	}
	if j.Spec.Template.Spec.Volumes[1].Projected == nil || install.Image != announce.Image ||
		!strings.Contains(install.Image, "@sha256:") {
		t.Errorf("Job %s has the images %s and %s", j.Name, install.Image, announce.Image)
	}
}

// The chart and deploy/runtimeclass.yaml say the same of each name.
func TestTheRuntimeClassesAreThoseOfTheFile(t *testing.T) {
	text, err := template(t, good)
	if err != nil {
		t.Fatal(err)
	}
	spec := func(list []any) map[string]node.RuntimeClass {
		out := map[string]node.RuntimeClass{}
		for _, o := range list {
			c := *o.(*node.RuntimeClass)
			name := c.Name
			c.ObjectMeta.Labels = nil
			out[name] = c
		}
		return out
	}
	got := spec(objects(t, text)["RuntimeClass"])
	want := spec(objects(t, read(t, "deploy/runtimeclass.yaml"))["RuntimeClass"])
	if len(want) != 5 || !reflect.DeepEqual(got, want) {
		t.Errorf("the chart's are\n%v\nand the file's\n%v", got, want)
	}
	text, err = template(t, good+"runtimeClasses: {enabled: false}\n")
	if err != nil || strings.Contains(text, "RuntimeClass") {
		t.Errorf("without RuntimeClasses: %v\n%s", err, text)
	}
}

func TestKustomizeMakesTheRuntimeClasses(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed: make setup")
	}
	out, err := exec.CommandContext(t.Context(), kubectl, "kustomize", filepath.Join(harness.Root(), "deploy")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if o := objects(t, string(out)); len(o["RuntimeClass"]) != 5 || len(o) != 1 {
		t.Errorf("kustomize makes %v", lengths(o))
	}
}

// wrong are values that the schema refuses, by the path that it names.
var wrong = []struct{ path, values string }{
	{"/image/digest", "image: {digest: latest}"},
	{"/image/digest", "image: {digest: 'sha256:0123'}"},
	{"/image/digest", "image: {digest: ''}"},
	{"/image/repository", "image: {repository: ''}"},
	{"/image/repository", "image: {repository: 'Registry.example/coco:tag@x'}"},
	{"/image/pullPolicy", "image: {pullPolicy: Sometimes}"},
	{"/image/pullSecrets/0", "image: {pullSecrets: [a b]}"},
	{"/image", "image: {tag: latest}"},
	{"/nodes", "nodes: []"},
	{"/nodes", "nodes: [a, a]"},
	{"/nodes/0", "nodes: ['a/../b']"},
	{"/nodes/0", "nodes: [1]"},
	{"/install/prefix", "install: {prefix: opt/coco}"},
	{"/install/prefix", "install: {prefix: /opt/../etc}"},
	{"/install/aliases", "install: {aliases: {Kata: coco}}"},
	{"/install/aliases/coco", "install: {aliases: {coco: coco-snp}}"},
	{"/install/aliases/kata", "install: {aliases: {kata: runc}}"},
	{"/install/keep", "install: {keep: -2}"},
	{"/install/keep", "install: {keep: '1'}"},
	{"/install/enableCRI", "install: {enableCRI: 'yes'}"},
	{"/install/waitTimeout", "install: {waitTimeout: forever}"},
	{"/install/ttlSecondsAfterFinished", "install: {ttlSecondsAfterFinished: 0}"},
	{"/install", "install: {script: 'rm -rf /'}"},
	{"/startupTaint", "startupTaint: 'a=b:NoSchedule'"},
	{"/runtimeClasses/handlers/0", "runtimeClasses: {handlers: [kata]}"},
	{"/runtimeClasses/overhead/memory", "runtimeClasses: {overhead: {memory: lots}}"},
	{"/networkPolicy/apiServerPorts/0", "networkPolicy: {apiServerPorts: [70000]}"},
	{"''", "nodeSelector: {a: b}"},
}

func TestTheSchemaNamesWhatIsWrong(t *testing.T) {
	for _, w := range wrong {
		var base, over map[string]any
		for text, into := range map[string]*map[string]any{good: &base, w.values: &over} {
			if err := yaml.Unmarshal([]byte(text), into); err != nil {
				t.Fatal(err)
			}
		}
		for key, v := range over {
			if m, ok := v.(map[string]any); ok && base[key] != nil {
				maps.Copy(base[key].(map[string]any), m)
				continue
			}
			base[key] = v
		}
		values, err := json.Marshal(base)
		if err != nil {
			t.Fatal(err)
		}
		out, err := template(t, string(values))
		if err == nil || !strings.Contains(err.Error(), "at '"+strings.Trim(w.path, "'")+"':") {
			t.Errorf("%s: %v, want a refusal that names %s\n%.300s", w.values, err, w.path, out)
		}
	}
}

// The table of values in the README is made of the comments in values.yaml. UPDATE_GOLDEN=1 writes it.
func TestTheReadmeHasTheValues(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, chart+"/values.yaml")), &doc); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("\n| value | default | meaning |\n|---|---|---|\n")
	describe(t, &b, "", doc.Content[0])
	const begin, end = "<!-- made from values.yaml -->\n", "\n<!-- end -->"
	path := chart + "/README.md"
	text := read(t, path)
	head, rest, ok := strings.Cut(text, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the values", path)
	}
	want := head + begin + b.String() + end + tail
	if text == want {
		return
	}
	if os.Getenv("UPDATE_GOLDEN") == "" {
		t.Fatalf("%s is not what values.yaml says; write it with UPDATE_GOLDEN=1 go test ./tests/deploy", path)
	}
	if err := os.WriteFile(filepath.Join(harness.Root(), path), []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
}

// describe writes a row for each value that has a comment beginning with "--", and refuses values without one.
func describe(t *testing.T, b *strings.Builder, prefix string, m *yaml.Node) {
	t.Helper()
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		name := prefix + key.Value
		about, ok := strings.CutPrefix(strings.TrimSpace(key.HeadComment), "# -- ")
		switch {
		case ok:
			var v any
			if err := value.Decode(&v); err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(b, "| `%s` | `%s` | %s |\n", name, text, strings.ReplaceAll(about, "\n# ", " "))
		case value.Kind == yaml.MappingNode:
			describe(t, b, name+".", value)
		default:
			t.Errorf("value %s has no comment that begins with \"-- \"", name)
		}
	}
}
