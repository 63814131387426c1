// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/tests/harness"
)

// A pod by the sandbox API has what one with a pause container has.
func TestPodOfTwoContainers(t *testing.T) {
	b := node(t)
	p := b.podConfig("two")
	pod := b.pod(viaSandbox, p)
	one := b.container(pod, p, "one", "/bin/sh", "-c", "echo hello; sleep 1000")
	two := b.container(pod, p, "two", "/bin/sleep", "1000")
	for what, want := range map[string]string{
		"hostname": "two", "cat /etc/hostname": "two",
		"cat /etc/resolv.conf": "search svc.cluster.local\nnameserver 10.96.0.10",
		"ls /etc/hosts":        "/etc/hosts",
	} {
		for _, c := range []string{one, two} {
			if got := b.sh(c, what); got != want {
				t.Errorf("%s = %q, want %q", what, got, want)
			}
		}
	}
	b.sh(one, "echo shared >/dev/shm/x")
	if got := b.sh(two, "cat /dev/shm/x"); got != "shared" {
		t.Errorf("the other container's /dev/shm/x = %q", got)
	}
	st, err := b.Runtime.PodSandboxStatus(b.ctx(10*time.Second), &cri.PodSandboxStatusRequest{
		PodSandboxId: pod,
		Verbose:      true,
	})
	if err != nil || st.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_READY {
		t.Fatalf("status = %v, %v", st, err)
	}
	if ip := st.GetStatus().GetNetwork().GetIp(); ip == "" || !strings.Contains(b.sh(one, "ip addr show eth0"), ip+"/") {
		t.Errorf("the pod's address %q is not on the guest's interface", ip)
	}
	if shim, vmm, err := harness.Pids(pod); err != nil || shim == vmm {
		t.Errorf("one shim and one VMM: %v", err)
	}
	ctx := b.ctx(time.Minute)
	for range 2 {
		if _, err := b.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if st, err := b.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod}); err != nil ||
		st.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("status after stop = %v, %v", st, err)
	}
	b.remove(ctx, pod)
	b.leavesNothing(ctx, pod, p.GetMetadata().GetName())
}

func TestVMThatDies(t *testing.T) {
	b := node(t)
	p := b.podConfig("dies")
	pod := b.pod(viaSandbox, p)
	c := b.container(pod, p, "one", "/bin/sleep", "1000")
	_, vmm, err := harness.Pids(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(vmm, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx := b.ctx(30 * time.Second)
	st := b.becomes(ctx, pod, cri.PodSandboxState_SANDBOX_NOTREADY)
	if reason := st.GetInfo()["reason"]; !strings.Contains(reason, "killed") {
		t.Errorf("reason = %q, want the VMM's end", reason)
	}
	for {
		r, err := b.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c})
		if err != nil {
			t.Fatal(err)
		}
		if s := r.GetStatus(); s.GetState() == cri.ContainerState_CONTAINER_EXITED {
			if s.GetExitCode() != 137 {
				t.Errorf("the container's exit code = %d, want 137", s.GetExitCode())
			}
			break
		}
		time.Sleep(50 * time.Millisecond) // CRI has no call that waits for an exit
	}
	b.remove(ctx, pod)
	b.leavesNothing(ctx, pod, p.GetMetadata().GetName())
}

// becomes waits for a state of a pod: CRI has no call that waits.
func (b bed) becomes(ctx context.Context, pod string, want cri.PodSandboxState) *cri.PodSandboxStatusResponse {
	b.t.Helper()
	for {
		st, err := b.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
		if err != nil {
			b.t.Fatalf("pod is not %v: %v", want, err)
		}
		if st.GetStatus().GetState() == want {
			return st
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestStartThatCannotBe(t *testing.T) {
	b := node(t)
	huge := b.podConfig("huge")
	huge.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 50}
	onHost := b.podConfig("onhost")
	onHost.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	for want, c := range map[string]*cri.PodSandboxConfig{"above the host's memory": huge, "hostNetwork": onHost} {
		r, err := b.Runtime.RunPodSandbox(b.ctx(time.Minute),
			&cri.RunPodSandboxRequest{Config: c, RuntimeHandler: viaSandbox})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run pod %s = %v, %v, want %q", c.GetMetadata().GetName(), r, err, want)
		}
		_, id, _ := strings.Cut(err.Error(), `sandbox "`)
		id, _, _ = strings.Cut(id, `"`)
		b.leavesNothing(t.Context(), id, c.GetMetadata().GetName())
	}
}

// containerd that dies finds its sandboxes again.
func TestDaemonRestarts(t *testing.T) {
	b := node(t)
	p := b.podConfig("survives")
	pod := b.pod(viaSandbox, p)
	c := b.container(pod, p, "one", "/bin/sleep", "1000")
	b.Kill()
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := b.ctx(time.Minute)
	b.becomes(ctx, pod, cri.PodSandboxState_SANDBOX_READY)
	if got := b.sh(c, "hostname"); got != "survives" {
		t.Errorf("exec after the restart = %q", got)
	}
	two := b.container(pod, p, "two", "/bin/sleep", "1000")
	b.sh(two, "true")
}
