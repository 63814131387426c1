// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// checkPolicy makes a policy of a container that runc runs, and starts one of the same command line under it. Docker's
// layer is another directory for each container, and the guest finds the same root hash. others says whether containers
// of other command lines are tried; they are refused.
func checkPolicy(t *testing.T, d *daemon, others bool) {
	t.Helper()
	initdata := filepath.Join(d.dir, "initdata.toml")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(pinned, fmt.Sprintf("[hypervisor]\ninitdata = %q\n", initdata))
	command := []string{
		"-e", "WORD=canary", "-w", "/tmp", "--cap-drop", "KILL", image, "sh", "-c",
		"ls /.dockerenv; echo $WORD $PWD $(hostname) $(cat /etc/hostname) $(readlink /etc/mtab); exec sleep 1000",
	}
	run := func(more ...string) []string { return append(append([]string{"run", "-d"}, more...), command...) }
	id := strings.TrimSpace(d.must(run("--runtime", "runc")...))
	write(filepath.Base(initdata), policyOf(t, d, id))
	d.must("rm", "-f", id)

	id = strings.TrimSpace(d.must(run("--runtime", "pinned")...))
	want := fmt.Sprintf("/.dockerenv\ncanary /tmp %s %s /proc/mounts\n", id[:12], id[:12])
	got := d.must("logs", id)
	for deadline := time.Now().Add(time.Minute); got != want && time.Now().Before(deadline); got = d.must("logs", id) {
		time.Sleep(100 * time.Millisecond) // the output has no event
	}
	if got != want {
		t.Errorf("the container under its policy writes %q, want %q", got, want)
	}
	d.must("rm", "-f", id)
	for what, args := range map[string][]string{
		"Args":   {"run", "-d", "--runtime", "pinned", image, "sleep", "1000"},
		"Mounts": run("--runtime", "pinned", "-v", "/etc:/mnt:ro"),
		"Env":    run("--runtime", "pinned", "-e", "LD_PRELOAD=/x"),
	} {
		if !others {
			break
		}
		if _, errs, code := d.docker(args...); code == 0 || !strings.Contains(errs, "denied [value] main/OCI.") ||
			!strings.Contains(errs, what) {
			t.Errorf("a container with other %s: exit %d, %q", what, code, errs)
		}
	}
}

// policyOf makes initdata with a policy of what containerd tells of a container that runs.
func policyOf(t *testing.T, d *daemon, id string) string {
	t.Helper()
	r := d.containerd.Ctr(t.Context(), "-n", d.namespace, "container", "info", id)
	if r.Code != 0 {
		t.Fatalf("ctr container info: %+v", r)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), "policy", "gen", "container",
		"--offline", "--cache", "", "--images", filepath.Join(d.dir, archive), "--image", image, "--interface", "eth0",
		"--allow", "logs", "-")
	cmd.Stdin = strings.NewReader(r.Stdout)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("coco policy gen container: %v: %s", err, errs.String())
	}
	return out.String()
}
