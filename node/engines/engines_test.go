// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/node/ctrd"
	"github.com/coco-shim/coco/node/engine"
)

const (
	shim = "/opt/coco/versions/0123456789ab/bin/containerd-shim-coco-v2"
	k3s  = "/var/lib/rancher/k3s/agent/etc/containerd/"
	rke2 = "/var/lib/rancher/rke2/agent/etc/containerd/"
)

var handlers = []engine.Handler{
	{Name: "coco", Shim: shim}, {Name: "coco-snp", Shim: shim, Config: "/opt/coco/versions/0123456789ab/snp.toml"},
}

// rendered is what k3s makes of its template, with its own runtimes.
func rendered(version, section, imports string) string {
	return "version = " + version + "\n" + imports + "[plugins.\"" + section + "\".containerd.runtimes.runc]\n" +
		"  runtime_type = \"io.containerd.runc.v2\"\n"
}

const (
	v1Section = "io.containerd.grpc.v1.cri"
	v2Section = "io.containerd.cri.v1.runtime"
)

// Each root is as the engine's documents describe it: k3s and RKE2 (advanced options, "Configuring containerd"),
// MicroK8s (args/containerd-template.toml), k0s (runtime, "containerd.d"), CRI-O (crio.conf.d), Docker (daemon.json).
var roots = []struct {
	name, engine string
	files        map[string]string
	file         string   // that is written
	want         []string // in it
}{
	{
		"k3s with containerd 1.7", "k3s",
		map[string]string{k3s + "config.toml": rendered("2", v1Section, "")},
		k3s + "config.toml.tmpl",
		[]string{"{{ template \"base\" . }}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.coco]"},
	},
	{
		"k3s with containerd 2 and a template", "k3s",
		map[string]string{
			k3s + "config.toml":         rendered("3", v2Section, ""),
			k3s + "config-v3.toml.tmpl": "{{ template \"base\" . }}\n# ours",
		},
		k3s + "config-v3.toml.tmpl",
		[]string{"# ours\n", "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.coco]"},
	},
	{
		"k3s that imports", "k3s",
		map[string]string{
			k3s + "config.toml": rendered("3", v2Section, "imports = [\""+k3s+"config-v3.toml.d/*.toml\"]\n"),
		},
		k3s + "config-v3.toml.d/coco.toml",
		[]string{"version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.coco]"},
	},
	{
		"RKE2", "rke2",
		map[string]string{rke2 + "config.toml": rendered("3", v2Section, "")},
		rke2 + "config-v3.toml.tmpl",
		[]string{"{{ template \"base\" . }}\n"},
	},
	{
		"MicroK8s", "microk8s",
		map[string]string{microTemplate: rendered("2", v1Section, "") + "  base = \"${SNAP_DATA}/x\"\n"},
		microTemplate,
		[]string{"${SNAP_DATA}", "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.coco]"},
	},
	{
		"k0s", "k0s",
		map[string]string{"/etc/k0s/containerd.toml": "version = 3\nimports = [\"/run/k0s/containerd-cri.toml\"]\n"},
		k0sDropIn,
		[]string{"version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.coco]"},
	},
	{"k0s without a file", "k0s", map[string]string{"/etc/k0s/k0s.yaml": ""}, k0sDropIn, []string{"version = 2\n"}},
	{
		"CRI-O", "crio",
		map[string]string{"/etc/crio/crio.conf": "[crio.runtime]\ndefault_runtime = \"crun\"\n"},
		crioFile,
		[]string{"[crio.runtime.runtimes.\"coco-snp\"]\nruntime_path = \"" + shim + "\"\nruntime_type = \"vm\"\n"},
	},
	{
		"Docker without a file", "docker",
		map[string]string{"/etc/docker/key.json": "{}"},
		dockerFile,
		[]string{`"coco": {"runtimeType": "` + shim + `"}`, `"ConfigPath": "/opt/coco/versions/0123456789ab/snp.toml"`},
	},
	{
		"Docker with other settings", "docker",
		map[string]string{dockerFile: "{\n\t\"debug\" : true,\n\t\"log-driver\": \"journald\"}"},
		dockerFile,
		[]string{"{\"runtimes\": {\"coco\"", "}}, \n\t\"debug\" : true"},
	},
	{
		"Docker with runtimes", "docker",
		map[string]string{dockerFile: `{"runtimes": { "nvidia": {"path": "/usr/bin/n", "runtimeArgs": []}}}` + "\n"},
		dockerFile,
		[]string{`"nvidia": {"path"`},
	},
	{"Docker with an empty object", "docker", map[string]string{dockerFile: "{}\n"}, dockerFile, nil},
	{"Docker with no runtimes", "docker", map[string]string{dockerFile: `{"runtimes":{ }}`}, dockerFile, nil},
}

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		write(t, root, path, []byte(text))
	}
	return root
}

func write(t *testing.T, root, path string, text []byte) {
	t.Helper()
	at := filepath.Join(root, path)
	if text == nil {
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func contents(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			text, rerr := os.ReadFile(path)
			out[strings.TrimPrefix(path, root)], err = string(text), rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRootsOfDistributions(t *testing.T) {
	for _, c := range roots {
		t.Run(c.name, func(t *testing.T) {
			root := tree(t, c.files)
			found := Find(root, "/opt/coco")
			if len(found) != 1 || found[0].Name() != c.engine {
				t.Fatalf("found %v, want %s", found, c.engine)
			}
			e := found[0]
			apply := func(h []engine.Handler) int {
				t.Helper()
				edits, _, err := e.Plan(t.Context(), h)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range edits {
					write(t, root, x.Path, x.Text)
				}
				return len(edits)
			}
			if n := apply(handlers); n != 1 {
				t.Fatalf("%d files change, want one", n)
			}
			now := contents(t, root)
			for _, want := range append(c.want, "coco-snp") {
				if !strings.Contains(now[c.file], want) {
					t.Errorf("%s is\n%s\nwant in it\n%s", c.file, now[c.file], want)
				}
			}
			parses(t, c.file, now[c.file])
			if n := apply(handlers); n != 0 {
				t.Errorf("a second plan changes %d files", n)
			}
			apply(handlers[:1])
			apply(nil)
			if d := cmp.Diff(c.files, contents(t, root)); d != "" {
				t.Errorf("without handlers (-before +after):\n%s", d)
			}
		})
	}
}

// parses reads a file as its engine does, after the template's own words were put in.
func parses(t *testing.T, path, text string) {
	t.Helper()
	var v map[string]any
	var err error
	if strings.HasSuffix(path, ".json") {
		err = json.Unmarshal([]byte(text), &v)
	} else {
		_, err = toml.Decode(strings.Replace(text, `{{ template "base" . }}`, rendered("3", v2Section, ""), 1), &v)
	}
	if err != nil {
		t.Errorf("%s does not parse: %v\n%s", path, err, text)
	}
}

func TestPlansThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{dockerFile: "[]"}, "no JSON object"},
		{map[string]string{dockerFile: `{"runtimes": {"coco": {"runtimeType": "io.containerd.coco.v2"}}}`}, "already"},
		{map[string]string{dockerFile: `{"a": {"runtimes": {}}, "runtimes": {}}`}, "more than once"},
		{map[string]string{microTemplate: "version = \n"}, "no TOML"},
		{map[string]string{k3s + "other": ""}, "start the node once"},
	} {
		_, _, err := Find(tree(t, c.files), "/opt/coco")[0].Plan(t.Context(), handlers)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q in it", c.files, err, c.want)
		}
	}
}

func TestWhatDockerSays(t *testing.T) {
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	if _, err := askDocker(t.Context(), socket); !errors.Is(err, ctrd.ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/info" {
			_, _ = w.Write([]byte(`{"Runtimes": {"coco": {"path": ""}, "runc": {"path": "runc"}}}`))
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
	})
	k := docker
	k.socket = socket
	e := &Engine{kind: k, prefix: "/opt/coco"}
	if s := e.State(t.Context()); !s.Running || !slices.Equal(s.Handlers, []string{"coco"}) {
		t.Errorf("State = %+v", s)
	}
}
