// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// TestVMMKilledUnderLoad: the kubelet sees the pod's containers end, makes a new sandbox, and the old one leaves
// nothing.
func TestVMMKilledUnderLoad(t *testing.T) {
	n := node(t, primary)
	noLeaks(t, n)
	static(t, n, "crash", `
  containers:
  - name: busy
    image: IMAGE
    command: [sh, -c, "while true; do echo line; done"]
  - name: idle
    image: IMAGE
    command: [sleep, "1000"]
`)
	await(t, n, "crash", "runs", running)
	first := sandbox(t, n, "crash")
	_, vmm, err := harness.Pids(first)
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(vmm)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := func(c kube.ContainerStatus) bool {
		for _, s := range []kube.ContainerState{c.State, c.LastState} {
			if s.Terminated != nil && s.Terminated.ExitCode == 137 {
				return true
			}
		}
		return false
	}
	// The kubelet may try once to start it in the sandbox that has died, so 137 need not be its last end.
	told := false
	await(t, n, "crash", "runs again", func(p *kube.Pod) bool {
		busy, _ := p.Container("busy")
		idle, _ := p.Container("idle")
		told = told || killed(idle)
		return running(p) && busy.RestartCount > 0 && idle.RestartCount > 0
	})
	t.Logf("runs again after %v", time.Since(began).Round(time.Second))
	if !told {
		t.Error("the container whose VMM was killed was never said to have ended with 137")
	}
}

// TestKubeletAndContainerdMayRestart: neither touches what runs.
func TestKubeletAndContainerdMayRestart(t *testing.T) {
	n := node(t, primary)
	noLeaks(t, n)
	static(t, n, "stays", `
  containers:
  - name: c
    image: IMAGE
    command: [sh, -c, "while true; do echo tick; sleep 1; done"]
`)
	before := await(t, n, "stays", "runs", running)
	ctx := t.Context()
	n.Kubelet.Kill()
	n.Containerd.Kill()
	if err := n.RestartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.StartKubelet(ctx, ""); err != nil {
		t.Fatal(err)
	}
	after := await(t, n, "stays", "runs", running)
	was, _ := before.Container("c")
	if is, _ := after.Container("c"); is.ContainerID != was.ContainerID || is.RestartCount != 0 {
		t.Errorf("the container was touched: %+v, before %+v", is, was)
	}
	if got := run(t, n, "stays", "c", "echo still here"); got != "still here" {
		t.Errorf("a command in the container = %q", got)
	}
	logged(t, n, "stays", "c", "tick")
}

// TestPodDeletedWhileItStarts takes the pod away while its VM boots.
func TestPodDeletedWhileItStarts(t *testing.T) {
	n := node(t, primary)
	noLeaks(t, n)
	t.Run("pod", func(t *testing.T) { // its clean-up takes the pod away
		static(t, n, "brief", `
  containers:
  - name: c
    image: IMAGE
    command: [sleep, "1000"]
`)
		eventually(t.Context(), t, "the VMM runs", func(ctx context.Context) (bool, string) {
			id, err := n.Sandbox(ctx, "brief-localhost")
			if err == nil {
				_, _, err = harness.Pids(id)
			}
			return err == nil, fmt.Sprint(err)
		})
	})
}

// TestContainerdRestartsDuringFiveStarts: containerd dies while five pods start, and comes back; all of them run in the
// end, and what the interrupted starts had made is gone.
func TestContainerdRestartsDuringFiveStarts(t *testing.T) {
	n := node(t, primary)
	noLeaks(t, n)
	var names []string
	for i := range 5 {
		names = append(names, fmt.Sprintf("many-%d", i))
		static(t, n, names[i], `
  containers:
  - name: c
    image: IMAGE
    command: [sleep, "1000"]
`)
	}
	eventually(t.Context(), t, "the first VMs run", func(context.Context) (bool, string) {
		dirs, err := filepath.Glob("/run/coco/*")
		return len(dirs) >= 2, fmt.Sprint(dirs, err)
	})
	n.Containerd.Kill()
	if err := n.RestartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		await(t, n, name, "runs", running)
		if got := run(t, n, name, "c", "hostname"); got != name+"-localhost" {
			t.Errorf("the host name in %s = %q", name, got)
		}
	}
}
