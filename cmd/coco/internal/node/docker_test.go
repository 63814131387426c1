// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testvm"
)

// A real dockerd gets the runtimes by a reload, and its file is as before after the removal.
func TestDocker(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Containerd, testvm.Docker)
	inNamespace(t, "2.1", "TestDockerInItsNamespace")
}

// TestDockerInItsNamespace is the child of TestDocker.
func TestDockerInItsNamespace(t *testing.T) {
	c := newReal(t)
	bin := filepath.Dir(testvm.Unpacked("docker", "dockerd"))
	t.Setenv("PATH", bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	bind(t, filepath.Join(c.dir, "docker"), "/etc") // all of it: the host may have no /etc/docker
	for _, name := range []string{"passwd", "group", "nsswitch.conf"} {
		if err := os.WriteFile(filepath.Join("/etc", name), []byte("root:x:0:\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bind(t, filepath.Join(c.dir, "varrun"), "/run")
	c.start(t, c.restartScript(t))
	config := fmt.Sprintf(`{
  "data-root": %q, "containerd": "/run/containerd/containerd.sock", "bridge": "none",
  "iptables": false, "ip6tables": false, "runtimes": {"other": {"path": "/bin/other"}}
}
`, filepath.Join(c.dir, "data"))
	const file = "/etc/docker/daemon.json"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	dockerd := exec.Command(filepath.Join(bin, "dockerd"))
	if err := dockerd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dockerd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = dockerd.Wait() // its status says nothing of the test
	})
	for deadline := time.Now().Add(time.Minute); exec.Command("docker", "version").Run() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("dockerd does not start")
		}
		time.Sleep(100 * time.Millisecond)
	}
	source := release(t, filepath.Join(c.dir, "release"), "1")
	flags := []string{"install", "--engine", "docker", "--from", source, "--prefix", filepath.Join(c.dir, "opt", "coco")}
	ok(t)(run(t, flags...))
	if out, _, err := run(t, "status", flags[5], flags[6]); err != nil || !strings.Contains(out, "handlers coco coco-") {
		t.Errorf("status = %s, %v", out, err)
	}
	if out, log, err := run(t, flags...); out+log != "" || err != nil {
		t.Errorf("second install = %q, %q, %v", out, log, err)
	}
	out, err := exec.Command("docker", "info", "--format", "{{range $k, $v := .Runtimes}}{{$k}} {{end}}").Output()
	if err != nil || !strings.Contains(string(out), "coco ") || !strings.Contains(string(out), "other ") {
		t.Errorf("docker info = %q, %v", out, err)
	}
	ok(t)(run(t, "uninstall", flags[5], flags[6]))
	if text, err := os.ReadFile(file); err != nil || string(text) != config {
		t.Errorf("%s is %q, %v", file, text, err)
	}
}
