// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// standbyCommand runs the CLI with the node's configuration.
func standbyCommand(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	args = append([]string{"standby"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Prefix(), "bin", "coco"),
		append(args, "--config", filepath.Join(node(t).Dir, "coco.toml"))...)
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("coco %v: %v: %s", args, err, out)
	}
	return string(out)
}

// A pod of Kubernetes starts in a VM that has waited for it: with its network, in its cgroup, and with its containers.
func TestAKubernetesPodStartsInAVMThatWaits(t *testing.T) {
	if os.Getenv(harness.EnvStandby) == "" {
		t.Skip("takes a minute: make standby")
	}
	t.Cleanup(func() { standbyCommand(t, "rm", "--all") })
	first := runPod(t)
	first.want(first.run("a", forever), "echo it runs", "it runs")
	deadline := time.Now().Add(time.Minute)
	for {
		var list []struct{ State string }
		if err := json.Unmarshal([]byte(standbyCommand(t, "ls", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) == 1 && list[0].State == "waits" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v", list)
		}
		time.Sleep(100 * time.Millisecond)
	}
	second := runPod(t)
	log, err := os.ReadFile(node(t).Log())
	if err != nil {
		t.Fatal(err)
	}
	warm := ""
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "pod has a standby VM") && strings.Contains(line, second.id) {
			warm = line
		}
	}
	if warm == "" {
		t.Fatalf("pod %s has booted", second.id)
	}
	a, b := second.run("a", "nc -l -p 8080 -e echo hello; "+forever), second.run("b", forever)
	second.want(b, "nc 127.0.0.1 8080 </dev/null", "hello")
	if ip, code := second.exec(b, "ip -4 addr show eth0"); code != 0 || !strings.Contains(ip, "inet ") {
		t.Errorf("its interface: %d, %s", code, ip)
	}
	gateway, _ := second.exec(a, "ip route | awk '/^default/ {print $3}'")
	second.want(a, fmt.Sprintf("ping -c 1 -W 5 %s >/dev/null && echo reached", strings.TrimSpace(gateway)), "reached")
}
