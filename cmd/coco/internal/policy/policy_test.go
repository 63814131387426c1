// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/signed"
)

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web # the shop's
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      runtimeClassName: coco
      containers:
        - name: web
          image: app:1 # pinned below
          volumeMounts: [{name: conf, mountPath: /conf}]
      volumes: [{name: conf, configMap: {name: conf}}]
`

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {k: v}\n"

// place is a directory with an image and manifests.
func place(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	im := testimage.Image{
		Layers: [][]testimage.File{{{Path: "app", Mode: 0o755, Data: []byte("app")}}},
		Config: v1.Config{Entrypoint: []string{"/app"}},
	}
	if err := im.WriteFile(filepath.Join(dir, "app.tar"), "app:1"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "web.yaml"), deployment)
	write(t, filepath.Join(dir, "conf.yaml"), configMap)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs a command of the group.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := Command()
	var out, errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func genPolicy(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	return run(t, "", append([]string{
		"gen", "--offline", "--cache", filepath.Join(dir, "cache"), "--images", filepath.Join(dir, "app.tar"),
		filepath.Join(dir, "web.yaml"), filepath.Join(dir, "conf.yaml"),
	}, args...)...)
}

func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestManifestsGetTheirPolicies(t *testing.T) {
	dir := place(t)
	out, err := genPolicy(t, dir, "--lock")
	must(t, out, err)
	for _, want := range []string{
		"name: web # the shop's", "image: app@sha256:", "# pinned below", "        " + contract.KataInitdata + ": H4sI",
		"kind: ConfigMap",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("gen writes no %q: %s", want, out)
		}
	}
	pinned := filepath.Join(dir, "pinned.yaml")
	write(t, pinned, out)
	table, err := run(t, out, "show", "-")
	if must(t, table, err); !strings.Contains(table, "Deployment web") || !strings.Contains(table, "/app") {
		t.Errorf("show = %s", table)
	}
	plain, err := genPolicy(t, dir, "--output", "policy")
	must(t, plain, err)
	write(t, filepath.Join(dir, "policy.coco"), plain)
	if diff, err := run(t, "", "diff", filepath.Join(dir, "policy.coco"), pinned); err != nil || diff != "" {
		t.Errorf("diff of the policy and its manifest = %s, %v", diff, err)
	}
	open, err := genPolicy(t, dir, "--output", "policy", "--allow", "logs,stdin")
	must(t, open, err)
	diff, err := run(t, open, "diff", pinned, "-")
	if err == nil || diff != "+ containers[web].allow.logs: true\n+ containers[web].allow.stdin: true\n" {
		t.Errorf("diff = %q, %v", diff, err)
	}
	lint, err := run(t, open, "lint", "--strict", "-")
	if err == nil || !strings.Contains(lint, "warning: container web: stdin is open") {
		t.Errorf("lint = %s, %v", lint, err)
	}
}

func TestFormsOfOutput(t *testing.T) {
	dir := place(t)
	annotation, err := genPolicy(t, dir, "-o", "annotation", "--algorithm", "sha384")
	must(t, annotation, err)
	d, err := initdata.FromAnnotation(strings.TrimSpace(annotation))
	if err != nil || d.Algorithm != "sha384" {
		t.Fatalf("the annotation = %v, %v", d, err)
	}
	base := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x = 1\"\n"
	write(t, filepath.Join(dir, "base.toml"), base)
	text, err := genPolicy(t, dir, "-o", "initdata", "--initdata", filepath.Join(dir, "base.toml"))
	must(t, text, err)
	d, err = initdata.FromText([]byte(text))
	if err != nil || d.Data["aa.toml"] != "x = 1" || d.Algorithm != "sha256" {
		t.Fatalf("the initdata = %v, %v", d, err)
	}
	if _, err := policy.Load([]byte(d.Data[policy.FileName])); err != nil {
		t.Errorf("the policy in it: %v", err)
	}
	out, err := genPolicy(t, dir, "--json")
	must(t, out, err)
	var all struct{ Workloads []result }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if w := all.Workloads; len(w) != 1 || !strings.HasPrefix(w[0].Digest, "sha256:") ||
		!strings.Contains(w[0].Images["app:1"], "app@sha256:") {
		t.Errorf("--json = %s", out)
	}
}

func TestGenRefuses(t *testing.T) {
	dir := place(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--allow", "all"}, "known are copy, debug, exec"},
		{[]string{"--output", "yaml"}, "known are manifest, annotation"},
		{[]string{"--platform", "a/b/c/d"}, "--platform"},
		{[]string{"--images", dir}, "is no OCI layout"},
		{[]string{"--images", filepath.Join(dir, "web.yaml")}, "is no docker archive"},
		{[]string{"--runtime-class", "other"}, "no pod"},
		{[]string{"--config", filepath.Join(dir, "none.toml")}, "none.toml"},
		{[]string{"--platform", "linux/arm64"}, "is for linux/amd64"},
	} {
		if _, err := genPolicy(t, dir, tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("gen %v = %v, want %q", tt.args, err, tt.want)
		}
	}
	if _, err := run(t, "kind: Pod\napiVersion: v1\nspec: {containers: []}\n", "show", "-"); err == nil ||
		!strings.Contains(err.Error(), "coco policy gen") {
		t.Errorf("show of a manifest without a policy = %v", err)
	}
}

func TestDenialsAreExplainedAndFound(t *testing.T) {
	dir := place(t)
	plain, err := genPolicy(t, dir, "--output", "policy")
	must(t, plain, err)
	file := filepath.Join(dir, "policy.coco")
	write(t, file, plain)
	log := `{"kind":"CreateSandbox","request":{"sandboxId":"a","hostname":"web"}}` + "\n"
	out, err := run(t, log, "simulate", file, "-")
	if err == nil || !strings.Contains(out, "1 CreateSandbox: denied [") {
		t.Fatalf("simulate = %s, %v", out, err)
	}
	text, err := run(t, out, "explain")
	if must(t, text, err); !strings.Contains(text, "field      ") || !strings.Contains(text, "advice     ") {
		t.Errorf("explain = %s", text)
	}
	if _, err := run(t, "", "explain", "no", "denial"); err == nil {
		t.Error("explain of another text has no error")
	}
}

func TestKatasPoliciesAreAskedAboutKatasLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.rego")
	write(t, file, `package agent_policy
default StartContainerRequest := false
CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/id", "value": input.sandbox_id}]}
StartContainerRequest { print("started before its sandbox"); data.pstate.id }
`)
	start := `{"kind":"StartContainerRequest","request":{"container_id":"c"}}` + "\n"
	log := start + `{"kind":"CreateSandboxRequest","request":{"sandbox_id":"a"}}` + "\n" +
		`{"kind":"CreateSandboxRequest","request":{"allowed":true,"ops":[]}}` + "\n" + start +
		`{"kind":"PauseContainerRequest","request":{}}` + "\n"
	out, err := run(t, log, "simulate", file, "-")
	want := "1 StartContainerRequest: StartContainerRequest is blocked by policy: started before its sandbox\n" +
		"2 CreateSandboxRequest: allowed\n3 CreateSandboxRequest: allowed\n4 StartContainerRequest: allowed\n" +
		"5 PauseContainerRequest: cannot be evaluated: PauseContainerRequest: the policy does not say: "
	if err == nil || !strings.Contains(err.Error(), "2 of 5") || !strings.HasPrefix(out, want) {
		t.Errorf("simulate = %s, %v, want %s", out, err, want)
	}
	write(t, file, "package agent_policy\nx if http.send({})")
	if _, err := run(t, log, "simulate", file, "-"); err == nil || !strings.Contains(err.Error(), "http.send") {
		t.Error(err)
	}
}

func TestFormatWritesTheCanonicalForm(t *testing.T) {
	dir := place(t)
	plain, err := genPolicy(t, dir, "--output", "policy")
	must(t, plain, err)
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, []byte(plain), "", "\t"); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, spaced.String(), "format", "-"); err != nil || out != plain {
		t.Errorf("format = %s, %v, want %s", out, err, plain)
	}
	if out, err := run(t, strings.Replace(plain, `"pod"`, `"Pod"`, 1), "format", "-"); err == nil {
		t.Errorf("format of a policy with an unknown member = %s", out)
	}
}

// TestSignedVolumes signs the files of a directory and makes a policy that names the key.
func TestSignedVolumes(t *testing.T) {
	dir := place(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	priv, pub, files := filepath.Join(dir, "owner.key"), filepath.Join(dir, "owner.pub"), filepath.Join(dir, "files")
	write(t, priv, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	write(t, pub, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})))
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(files, "key"), "text")
	for range 2 { // the signature is none of the files
		out, err := run(t, "", "sign", "--key", priv, "--for", "conf", "--counter", "3", files)
		must(t, out, err)
	}
	text, err := os.ReadFile(filepath.Join(files, signed.FileName))
	if err != nil {
		t.Fatal(err)
	}
	s, err := signed.Verify(text, []string{base64.StdEncoding.EncodeToString(public)})
	if err != nil || s.Counter != 3 || s.Name != "conf" || len(s.Files) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	out, err := genPolicy(t, dir, "--output", "policy", "--signed", "conf="+pub)
	must(t, out, err)
	if !strings.Contains(out, `"rule":"signed"`) {
		t.Errorf("no signed volume in %s", out)
	}
	for _, bad := range []string{"conf", "conf=" + priv, "conf=" + dir + "/none", "none=" + pub} {
		if _, err := genPolicy(t, dir, "--signed", bad); err == nil || !strings.Contains(err.Error(), "--signed") {
			t.Errorf("gen --signed %s = %v", bad, err)
		}
	}
	write(t, filepath.Join(files, "-first"), "text")
	if _, err := run(t, "", "sign", "--key", priv, "--for", "conf", "--counter", "4", files); err == nil {
		t.Error("a file that is sent before the signature is signed")
	}
}
