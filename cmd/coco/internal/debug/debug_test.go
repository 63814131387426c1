// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// secret is planted in every place where a pod's owner or an administrator may have one.
const secret = "hunter2-hunter2"

// node makes a host with one pod, and a program in the place of coco.
func node(t *testing.T) (config, self string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dbg") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	place, bundle := filepath.Join(dir, "s", "p1"), filepath.Join(dir, "bundle")
	for _, d := range []string{place, bundle} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(bundle) // a shim works in the bundle, and this process serves the metrics
	l, err := net.Listen("unix", filepath.Join(place, virtcontainers.MetricsSocket))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- metrics.Serve(ctx, l, func(context.Context) string {
			return "coco_pod_info{pod=\"p1\",namespace=\"default\"} 1\n"
		})
	}()
	t.Cleanup(func() { cancel(); <-done })

	writeJSON(t, filepath.Join(bundle, "config.json"), specs.Spec{
		Process: &specs.Process{
			Args: []string{"/bin/" + secret, "--password", secret}, Env: []string{"PASSWORD=" + secret, "HOME=/root"},
		},
		Annotations: map[string]string{"a/token": secret},
		Mounts:      []specs.Mount{{Type: "bind", Destination: "/run/secrets", Source: "/x/" + secret}},
	})
	writeJSON(t, filepath.Join(bundle, state.File), state.Pod{
		Version: state.Version, ID: "p1", Bundle: bundle, Annotations: map[string]string{"b/key": secret},
		Hooks: []state.Hook{{Path: "/bin/hook", Args: []string{secret}, Env: []string{"A=" + secret}}},
	})
	write(t, filepath.Join(place, "data"), secret)
	config = filepath.Join(dir, "config.toml")
	write(t, config, "[hypervisor]\nkernel_params = \"quiet agent.proxy=http://me:"+secret+"@proxy\"\n"+
		"[runtime]\nstate_dir = \""+filepath.Join(dir, "s")+"\"\n")
	self = filepath.Join(dir, "coco")
	script := "#!/bin/sh\necho \"{\\\"asked\\\": \\\"$*\\\", \\\"url\\\": \\\"https://me:" + secret + "@host\\\"}\"\n" +
		"echo token=" + secret + " >&2\ntest $1 != check\n"
	if err := os.WriteFile(self, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return config, self
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(text))
}

// unpack returns the files of an archive by name.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "coco-debug/")] = string(text)
	}
}

func TestTheArchiveHasNoSecret(t *testing.T) {
	config, self := node(t)
	out := filepath.Join(t.TempDir(), "a.tar.gz")
	b := collect(t.Context(), config, self)
	if err := b.write(out, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out)
	for name, want := range map[string]string{
		"host.json": "kernel", "version.json": "version --json", "check.json": "check --json",
		"node-status.json": "node status --json", "config.json": "agent.proxy=[removed]", "pods.json": `"id": "p1"`,
		"metrics.prom": "coco_pod_info", "pods/p1/files.txt": "/s/p1/data", "pods/p1/journal.json": "/bin/hook",
		"pods/p1/spec.json": "PASSWORD", "problems.txt": "exit status 1",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s is %q, want %q in it", name, files[name], want)
		}
		sum := sha256.Sum256([]byte(files[name]))
		if !strings.Contains(files["CONTENTS.txt"], hex.EncodeToString(sum[:])+"  "+name+": ") {
			t.Errorf("CONTENTS.txt does not have %s:\n%s", name, files["CONTENTS.txt"])
		}
	}
	for name, text := range files {
		if strings.Contains(text, secret) {
			t.Errorf("%s has the secret:\n%s", name, text)
		}
	}
	if strings.Count(files["CONTENTS.txt"], "\n") != len(files) {
		t.Errorf("CONTENTS.txt does not list each of %d files:\n%s", len(files), files["CONTENTS.txt"])
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive has mode %v, %v", info.Mode(), err)
	}
	if err := b.write(out, time.Unix(1, 0)); err == nil || !strings.Contains(err.Error(), "-o") {
		t.Errorf("a file that is there = %v", err)
	}
}

func TestScrub(t *testing.T) {
	for in, want := range map[string]string{
		`token=abc next`:                                          `token="[removed]" next`,
		`"clientSecret": "a\"b", "x": 1`:                          `"clientSecret": "[removed]", "x": 1`,
		`Authorization: Bearer abcdefghijk.x`:                     `Authorization: Bearer [removed]`,
		`https://u:p@h/x?y`:                                       `https://[removed]@h/x?y`,
		`a eyJhbGciOiJFUzI1NiJ9.e30.c2ln b`:                       `a [removed] b`,
		"x\n-----BEGIN EC KEY-----\nabc\n-----END EC KEY-----\ny": "x\n[removed]\ny",
		"-----BEGIN PRIVATE KEY-----\nabc that is cut":            "[removed]",
		`password: hunter2, user: me`:                             `password: "[removed]", user: me`,
		`API_KEY=k1;db_passwd=k2`:                                 `API_KEY="[removed]";db_passwd="[removed]"`,
		`coco_node_pods 7`:                                        `coco_node_pods 7`,
		`sha256:0011 of policy.coco`:                              `sha256:0011 of policy.coco`,
	} {
		if got := string(scrub([]byte(in))); got != want {
			t.Errorf("scrub(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestOneConfigurationThatIsWrong(t *testing.T) {
	_, self := node(t)
	bad := filepath.Join(t.TempDir(), "bad.toml")
	write(t, bad, "[hypervisor]\nno_such_key = 1\n[runtime]\n")
	b := collect(t.Context(), bad, self)
	var names []string
	for _, f := range b.files {
		names = append(names, f.name)
		if f.name == "problems.txt" && !strings.Contains(string(f.text), "no_such_key") {
			t.Errorf("problems.txt = %s", f.text)
		}
	}
	if !slices.Contains(names, "problems.txt") || slices.Contains(names, "config.json") {
		t.Errorf("files of a broken configuration: %v", names)
	}
}
