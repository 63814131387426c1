// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

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

// A VMM that is killed while its guest boots, or while it is saved, makes its builder fail by name. Nothing stays, and
// the next builder makes the template.
func TestBuildersWhoseVMMIsKilled(t *testing.T) {
	noLeaks(t)
	config, dir := templates(t)
	state := filepath.Dir(dir)
	program := filepath.Join(harness.Prefix(), "bin", "coco")
	for _, moment := range []struct {
		name  string
		bytes int64 // of the state that is being written
	}{{"boots", 0}, {"is saved", 1 << 20}} {
		cmd := exec.CommandContext(t.Context(), program, "template", "build", "--config", config)
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sigkill(t, savedVM(t, state, moment.bytes))
		switch err := cmd.Wait(); {
		case err != nil && strings.Contains(said.String(), "signal: killed"):
			t.Logf("%s: %s", moment.name, strings.TrimSpace(said.String()))
		case err == nil && moment.bytes > 0: // all of the state was written by then
			coco(t, "template", "rm", "--config", config, "--all")
		default:
			t.Errorf("the VMM was killed while its guest %s: %v: %s", moment.name, err, said.String())
		}
		for _, pattern := range []string{".template-*", "user-*", "templates/.new-*", "templates/[0-9a-f]*"} {
			if left, _ := filepath.Glob(filepath.Join(state, pattern)); len(left) > 0 {
				t.Errorf("%s: left: %v", moment.name, left)
			}
		}
	}
	coco(t, "template", "build", "--config", config)
}

// savedVM waits for the VMM that a builder has booted, until so much of its state is written.
func savedVM(t *testing.T, state string, bytes int64) (pid int) {
	t.Helper()
	group := filepath.Join("/sys/fs/cgroup/memory", fmt.Sprintf("coco-template-%x", sha256Of(state)), "cgroup.procs")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		procs, _ := os.ReadFile(group) // it is not there at first
		pid, _ = strconv.Atoi(strings.TrimSpace(string(procs)))
		if pid <= 1 {
			continue
		}
		if bytes == 0 {
			return pid
		}
		names, _ := filepath.Glob(filepath.Join(state, "templates/.new-*/state"))
		for _, name := range names {
			if st, err := os.Stat(name); err == nil && st.Size() >= bytes {
				return pid
			}
		}
	}
	t.Fatal("the builder's VM is not there")
	return 0
}
