// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/policy"
)

const info = `{"ID": "c1", "Image": "app:1", "Spec": {
	"process": {"args": ["/app"], "cwd": "/", "user": {"uid": 7}, "env": ["A=b"]}, "root": {"path": "rootfs"},
	"linux": {"namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]}}}`

// run runs the command with an archive that has the image app:1.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "app.tar")
	im := testimage.Image{
		Layers: [][]testimage.File{{{Path: "app", Mode: 0o755, Data: []byte("app")}}},
		Config: v1.Config{Entrypoint: []string{"/app"}},
	}
	if err := im.WriteFile(archive, "app:1"); err != nil {
		t.Fatal(err)
	}
	cmd := Command()
	var out, errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append([]string{"--offline", "--cache", "", "--images", archive, "-"}, args...))
	err := cmd.Execute()
	return out.String(), err
}

func TestTheFormsOfAContainersPolicy(t *testing.T) {
	text, err := run(t, info, "--output", "policy")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Load([]byte(strings.TrimSuffix(text, "\n")))
	if err != nil || len(p.Containers) != 1 || p.Containers[0].Process.Args[0] != "/app" ||
		len(p.Containers[0].Image.Layers) != 1 {
		t.Fatalf("the policy is %+v, %v", p, err)
	}
	for form, read := range map[string]func(string) (*initdata.Document, error){
		"initdata":   func(s string) (*initdata.Document, error) { return initdata.FromText([]byte(s)) },
		"annotation": func(s string) (*initdata.Document, error) { return initdata.FromAnnotation(strings.TrimSpace(s)) },
	} {
		out, err := run(t, info, "--output", form)
		if err != nil {
			t.Fatal(err)
		}
		d, err := read(out)
		if err != nil || d.Data[policy.FileName]+"\n" != text {
			t.Errorf("%s: %+v, %v, want %s", form, d, err, text)
		}
	}
}

func TestWhatNoPolicyIsMadeOf(t *testing.T) {
	for want, args := range map[string][]string{
		`--output "x": known are`:      {"--output", "x"},
		`--allow "all": known are`:     {"--allow", "all"},
		"only Kubernetes":              {"--allow", "port-forward"},
		"other:1":                      {"--image", "other:1"},
		"--initdata":                   {"--initdata", "/absent"},
		"policy gen container: -: it ": {"--offline=true"},
	} {
		text := info
		if strings.HasSuffix(want, "it ") {
			text = "{}"
		}
		if out, err := run(t, text, args...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%q: %q, %v, want %q", args, out, err, want)
		}
	}
	nameless := strings.Replace(info, `"app:1"`, `""`, 1)
	if _, err := run(t, nameless); err == nil || !strings.Contains(err.Error(), "--image") {
		t.Errorf("without an image: %v", err)
	}
	if _, err := run(t, nameless, "--image", "app:1"); err != nil {
		t.Errorf("with --image: %v", err)
	}
}
