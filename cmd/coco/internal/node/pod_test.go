// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/node"
	"github.com/coco-shim/coco/tests/harness"
)

// A container runs in a VM by what the command has installed. It keeps its version over an upgrade, and while it runs
// nothing is removed.
func TestAPodOfTheInstalledVersion(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Containerd, testvm.GuestImage, testvm.QEMU, testvm.Busybox)
	if _, err := os.Stat(filepath.Join(harness.Prefix(), node.Shim)); err != nil {
		t.Skipf("%v; run make stage", err)
	}
	inNamespace(t, "1.6", "TestPodInItsNamespace")
}

// TestPodInItsNamespace is the child of TestAPodOfTheInstalledVersion.
func TestPodInItsNamespace(t *testing.T) {
	c := newReal(t)
	config := filepath.Join(t.TempDir(), "coco.toml") // a template of this VM would be of use to no other test
	if err := os.WriteFile(config, []byte("[runtime]\ntemplate = \"off\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(configs.EnvFile, config)
	restart := c.restartScript(t)
	c.start(t, restart)
	ctr := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, filepath.Join(filepath.Dir(c.binary), "ctr"), args...).CombinedOutput()
		return string(out), err
	}
	prefix := "--prefix=" + filepath.Join(c.dir, "opt", "coco")
	ok(t)(run(t, "install", "--from", harness.Prefix(), prefix, "--restart-command", restart))

	base, err := testimage.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(c.dir, "image.tar")
	if err := base.WriteFile(tar, harness.Image); err != nil {
		t.Fatal(err)
	}
	if out, err := ctr("images", "import", tar); err != nil {
		t.Fatalf("import: %v: %s", err, out)
	}
	out, err := ctr("run", "-d", "--runtime", harness.Runtime, harness.Image, "web", "sleep", "1000")
	if err != nil {
		t.Fatalf("run: %v: %s", err, out)
	}
	gone := false
	remove := func() {
		if gone {
			return
		}
		gone = true
		if out, err := ctr("task", "rm", "-f", "web"); err != nil {
			t.Errorf("remove the task: %v: %s", err, out)
		}
		if out, err := ctr("container", "rm", "web"); err != nil {
			t.Errorf("remove the container: %v: %s", err, out)
		}
	}
	defer remove()
	var pod struct {
		Engine, Name string
		Guest        bool `json:"guest_up"`
	}
	seen, err := exec.Command(filepath.Join(harness.Prefix(), node.CLI), "inspect", "web", "--json").Output()
	if jerr := json.Unmarshal(seen, &pod); err != nil || jerr != nil || pod.Engine != "ctr" || !pod.Guest {
		t.Errorf("coco inspect web --json = %s, %v", seen, err)
	}
	_, _, err = run(t, "uninstall", prefix)
	if err == nil || !strings.Contains(err.Error(), "web (namespace default, shim") {
		t.Errorf("uninstall while a pod runs = %v", err)
	}
	newer := newerRelease(t, filepath.Join(c.dir, "newer"))
	ok(t)(run(t, "upgrade", "--from", newer, "--keep", "0", prefix))
	if out, _, err := run(t, "check", prefix); err != nil || strings.Count(out, "ok  version") != 2 {
		t.Errorf("check = %s, %v, want two versions", out, err)
	}
	if out, err := ctr("task", "exec", "--exec-id", "e", "web", "uname", "-r"); err != nil || out == "" {
		t.Errorf("exec after the upgrade: %v: %s", err, out)
	}
	remove()
	ok(t)(run(t, "gc", prefix))
	if out, _, err := run(t, "check", prefix); err != nil || strings.Count(out, "ok  version") != 1 {
		t.Errorf("check after gc = %s, %v, want one version", out, err)
	}
	ok(t)(run(t, "uninstall", prefix))
}

func ok(t *testing.T) func(out, log string, err error) {
	t.Helper()
	return func(out, log string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s%s", err, out, log)
		}
	}
}

// newerRelease is the staged one with a configuration file more.
func newerRelease(t *testing.T, dir string) string {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS(harness.Prefix())); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "share/coco/configs/newer.toml")
	if err := os.WriteFile(file, []byte("# newer\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
