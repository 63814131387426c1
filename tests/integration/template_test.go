// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// templates is a configuration whose pods start from templates, in a directory of its own.
func templates(t *testing.T) (config, dir string) {
	t.Helper()
	state, err := os.MkdirTemp("/run", "coco-t-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	config = filepath.Join(t.TempDir(), "config.toml")
	// Pods with live files boot: the program twin comes as a copy.
	write(t, config, fmt.Sprintf("[runtime]\nstate_dir = %q\ntemplate = \"private\"\nbinds = \"read-only\"\n", state))
	return config, filepath.Join(state, "templates")
}

func coco(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("coco %v: %v: %s", args, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// twins is a directory with the program twin.
func twins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "twin"), "./tests/integration/testdata/twin")
	cmd.Dir, cmd.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build twin: %v\n%s", err, out)
	}
	return dir
}

// Pods that start from one template have nothing random in common: neither with another pod, nor with the template.
func TestPodsFromATemplateHaveNothingInCommon(t *testing.T) {
	const pods = 6
	d := daemon(t, primary)
	noLeaks(t)
	config, _ := templates(t)
	begun := time.Now()
	key := coco(t, "template", "build", "--config", config)
	t.Logf("template %.12s made in %v", key, time.Since(begun).Round(time.Millisecond))
	follow, err := d.Follow()
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	dir := twins(t)
	seen := map[string]string{}
	for pod := range pods {
		begun := time.Now()
		out := must(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, "--cap-add",
			"CAP_NET_ADMIN", "--mount", "type=bind,src="+dir+",dst=/t,options=rbind:ro", harness.Image, newID(t), "/t/twin")
		t.Logf("pod %d took %v", pod, time.Since(begun).Round(time.Millisecond))
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 8 {
			t.Fatalf("twin says %q", out)
		}
		for _, l := range lines {
			if other := seen[l]; other != "" {
				t.Errorf("pods %s and %d have the same %s", other, pod, l)
			}
			seen[l] = fmt.Sprint(pod)
		}
	}
	log, err := os.ReadFile(d.Log())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "VM starts from a template"); n < pods {
		t.Errorf("%d of %d pods started from the template", n, pods)
	}
	if got := coco(t, "template", "ls", "--config", config); !strings.Contains(got, key[:12]) {
		t.Errorf("coco template ls says %s", got)
	}
}

// Without a template that can be used a pod boots, and the log says why. A damaged one is removed by the first that
// meets it, whose start fails by name.
func TestPodsWithoutAUsableTemplate(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config, dir := templates(t)
	run := func(want string) {
		t.Helper()
		before, err := os.ReadFile(d.Log())
		if err != nil {
			t.Fatal(err)
		}
		r := ctr(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image,
			newID(t), "true")
		after, err := os.ReadFile(d.Log())
		if err != nil {
			t.Fatal(err)
		}
		if said := string(after[len(before):]) + r.Stderr; !strings.Contains(said, want) {
			t.Errorf("exit %d without %q: %s", r.Code, want, r.Stderr)
		}
	}
	run("there is none")
	key := coco(t, "template", "build", "--config", config)
	state := filepath.Join(dir, key, "state")
	if err := os.Truncate(state, 1000); err != nil {
		t.Fatal(err)
	}
	run("1000 bytes")
	if again := coco(t, "template", "build", "--config", config); again != key {
		t.Errorf("built again: %s, not %s", again, key)
	}
	f, err := os.OpenFile(state, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("not what was saved"), 40<<20); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	run("the state has digest")
	run("there is none")
	coco(t, "template", "build", "--config", config)
	coco(t, "template", "rm", "--config", config, key[:8])
	run("there is none")
}

// Two builders at once make one template; one that is killed leaves nothing, and the next one makes it.
func TestBuildersOfTemplates(t *testing.T) {
	config, dir := templates(t)
	program := filepath.Join(harness.Prefix(), "bin", "coco")
	for _, moment := range []string{".new-*", ".new-*/state", "../.template-*/netns"} {
		cmd := exec.Command(program, "template", "build", "--config", config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, time.Minute, func() error {
			if found, _ := filepath.Glob(filepath.Join(dir, moment)); len(found) == 0 {
				return fmt.Errorf("no %s", moment)
			}
			return nil
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
	}
	var wg sync.WaitGroup
	out := make([]string, 2)
	for i := range out {
		wg.Go(func() {
			b, _ := exec.Command(program, "template", "build", "--config", config).CombinedOutput()
			out[i] = string(b)
		})
	}
	wg.Wait()
	if both := strings.Join(out, "\n"); !strings.Contains(both, "made in") ||
		!strings.Contains(both, "another process makes a template") && !strings.Contains(both, "there already") {
		t.Errorf("two builders: %q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, pattern := range []string{".template-*", "user-*"} {
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}
