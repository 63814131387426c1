// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/virtcontainers/state"
)

func zip64(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

func TestInspectShowsPolicyAndInitdata(t *testing.T) {
	config, dir := servePod(t, text)
	document := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.coco\" = \"rules\"\n"
	spec, err := json.Marshal(map[string]any{"annotations": map[string]string{
		contract.KataInitdata: zip64(t, document),
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), string(spec))
	j, err := json.Marshal(state.Pod{
		Version: state.Version, ID: "p1", Bundle: dir, VMM: &state.Process{PID: os.Getpid(), StartTime: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, state.File), string(j))
	digest := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	out, err := run(t, InspectCommand(), "--config", config, "shop/web", "--json")
	var v view
	jerr := json.Unmarshal([]byte(out), &v)
	if err != nil || jerr != nil || v.Initdata != digest(document) || v.Policy != digest("rules") || v.Begun != "boot" {
		t.Errorf("inspect --json = %s, %v, %v", out, err, jerr)
	}
	write(t, filepath.Join(dir, "config.json"), `{}`)
	out, err = run(t, InspectCommand(), "--config", config, "shop/web")
	for _, want := range []string{"policy digest", "initdata digest", "begun from"} {
		at := strings.Index(out, want)
		if err != nil || at < 0 || !strings.Contains(strings.SplitN(out[at:], "\n", 2)[0], map[bool]string{
			true: "boot", false: "none",
		}[want == "begun from"]) {
			t.Errorf("inspect = %s, %v, want a line %q", out, err, want)
		}
	}
}

// A bundle that is gone leaves the words unknown, never "none".
func TestWhatIsNotReadIsUnknown(t *testing.T) {
	config, dir := servePod(t, text)
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "address"), "unix:///nowhere")
	out, err := run(t, InspectCommand(), "--config", config, "shop/web", "--json")
	var v view
	jerr := json.Unmarshal([]byte(out), &v)
	if err != nil || jerr != nil || v.Policy != unknown || v.Initdata != unknown || v.Begun != unknown {
		t.Errorf("inspect --json = %s, %v", out, err)
	}
}

// Initdata that a configuration gave is told from the VMM's command line, and never called "none".
func TestInitdataOfAConfiguration(t *testing.T) {
	pid := sleeper(t, "-append", contract.ParamInitdata+"=sha256:0123 quiet", "-name", "coco-p")
	dir := t.TempDir()
	write(t, filepath.Join(dir, state.File), `{"version":1,"id":"p","namespace":"n","bootId":"b","bundle":"/b","vmm":{"pid":`+
		strconv.Itoa(pid)+`,"startTime":1}}`)
	if got := configured(bundle.Dir(dir)); got != "sha256:0123" {
		t.Errorf("configured = %q", got)
	}
	if got := configured(bundle.Dir(t.TempDir())); got != "" {
		t.Errorf("configured = %q without a VMM", got)
	}
}

func TestBegunFromATemplate(t *testing.T) {
	cmd := sleeper(t, "-incoming", "defer")
	dir := t.TempDir()
	write(t, filepath.Join(dir, state.File), `{"version":1,"id":"p","namespace":"n","bootId":"b","bundle":"/b","vmm":{"pid":`+
		strconv.Itoa(cmd)+`,"startTime":1}}`)
	if got := begun(bundle.Dir(dir)); got != "template" {
		t.Errorf("begun = %q", got)
	}
}

// sleeper runs a process with arguments until the test ends. It returns when the process runs: within execve(2) a
// process has no arguments in /proc.
func sleeper(t *testing.T, args ...string) int {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", "echo; read x", "sh"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // read fails at the end of its input
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
