// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

// TestAContainerRunsUnderThePolicyOfItsDescription takes ctr's description of a container that was created, makes a
// policy of it alone, and starts that container under it. One of another command line is refused.
func TestAContainerRunsUnderThePolicyOfItsDescription(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	must(t, d, "images", "export", "--local", archive, harness.Image)
	initdata, config := filepath.Join(dir, "initdata.toml"), filepath.Join(dir, "config.toml")
	write(t, config, fmt.Sprintf("[hypervisor]\ninitdata = %q\n[runtime]\ntemplate = \"off\"\n", initdata))
	flags := []string{
		"--runtime", harness.Runtime, "--runtime-config-path", config, "--env", "SECRET=canary", "--cwd", "/tmp",
		"--user", "7:8", "--read-only", "--cap-drop", "CAP_CHOWN", "--hostname", "pinned", "--seccomp",
	}
	id := newID(t)
	command := []string{"sh", "-c", "echo $SECRET $(pwd) $(id -u) $(hostname)"}
	must(t, d, append(append(append([]string{"container", "create"}, flags...), harness.Image, id), command...)...)
	t.Cleanup(func() { remove(t, d, id) })

	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), "policy", "gen", "container",
		"--offline", "--cache", "", "--images", archive, "--allow", "logs,stdin", "-")
	cmd.Stdin = bytes.NewReader([]byte(must(t, d, "container", "info", id)))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("coco policy gen container: %v: %s", err, errs.String())
	}
	write(t, initdata, out.String())

	if r := ctr(t, d, "task", "start", id); r.Code != 0 || r.Stdout != "canary /tmp 7 pinned\n" {
		t.Fatalf("the container under its policy: %+v", r)
	}
	run := func(more []string, command ...string) harness.Result {
		other := newID(t)
		t.Cleanup(func() { remove(t, d, other) })
		return ctr(t, d, append(append(append(append([]string{"run", "--rm"}, flags...), more...), harness.Image, other),
			command...)...)
	}
	refused(t, run(nil, "sh", "-c", "echo other"), "denied [value] main/OCI.Process.Args[2]: expected")
	refused(t, run([]string{"--env", "LD_PRELOAD=/x"}, command...), "denied [value] main/OCI.Process.Env")
}
