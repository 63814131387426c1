// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/tests/harness"
)

// The commands for people look into a container of ctr by its id.
func TestLogsExecAndInspect(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	begun := "begun from boot"
	if os.Getenv(harness.EnvTemplate) == configs.TemplatePrivate {
		begun = "begun from template"
	}
	id := newID(t)
	must(t, d, "run", "-d", "--runtime", harness.Runtime, "--env", "COLOUR=blue", "--log-uri",
		"file://"+filepath.Join(t.TempDir(), "log"), harness.Image, id, "sh", "-c", "echo to-log; exec sleep 1000")
	t.Cleanup(func() { remove(t, d, id) })
	for _, c := range []struct {
		args, in string
		want     []string
		status   int
	}{
		{"logs " + id, "", []string{"to-log\n"}, 0},
		{"exec -i " + id + " -- cat", "through the guest\n", []string{"through the guest\n"}, 0},
		{"exec " + id + " -- sh -c 'echo $COLOUR; echo no >&2; exit 7'", "", []string{"blue\n", "no\n", "status 7"}, 7},
		{"inspect " + id, "", []string{"policy digest none", begun, "guest answers"}, 0},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", filepath.Join(harness.Prefix(), "bin", "coco")+" "+c.args)
		cmd.Stdin = strings.NewReader(c.in)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != c.status {
			t.Errorf("coco %s ends with %d, %v", c.args, cmd.ProcessState.ExitCode(), err)
		}
		for _, want := range c.want {
			columns := strings.Join(strings.Fields(string(out)), " ")
			if !strings.Contains(string(out), want) && !strings.Contains(columns, want) {
				t.Errorf("coco %s = %s, want %q in it", c.args, out, want)
			}
		}
	}
}
