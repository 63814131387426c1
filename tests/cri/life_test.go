// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestInitContainersSidecarsAndRestarts(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	if s := p.wait(p.run("init", "echo prepared; exit 0")); s.GetExitCode() != 0 || p.log("init") != "prepared\n" {
		t.Errorf("init container: %v, log %q", s, p.log("init"))
	}
	side := p.run("side", forever)
	for i, code := range []int32{3, 0} { // kubelet restarts by making a new container of the same name
		id := p.run("app", "echo run; exit "+string(rune('0'+code)), func(c *runtime.ContainerConfig) {
			c.Metadata.Attempt = uint32(i)
		})
		if s := p.wait(id); s.GetExitCode() != code {
			t.Errorf("run %d: exit code %d, want %d", i, s.GetExitCode(), code)
		}
		if _, err := p.node.Runtime.RemoveContainer(p.context(),
			&runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
	if s := p.status(side); s.GetState() != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the sidecar is %v after the others have come and gone", s.GetState())
	}
	id := p.create("missing", "", func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such/program"} })
	if err := p.start(id); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of a program that is not there = %v", err)
	}
	p.want(side, "echo alive", "alive")
}

func TestTermination(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	polite := p.run("polite", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
	deaf := p.run("deaf", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	chosen := p.run("chosen", "trap 'exit 9' USR1; trap '' TERM; echo ready; while :; do sleep 0.1; done",
		func(c *runtime.ContainerConfig) {
			c.StopSignal = runtime.Signal_SIGUSR1
		})
	for _, name := range []string{"polite", "deaf", "chosen"} {
		p.awaitLog(name, "ready")
	}
	began := time.Now()
	p.stop(polite, 30)
	if s := p.status(polite); s.GetExitCode() != 7 || !strings.Contains(p.log("polite"), "bye") {
		t.Errorf("polite: exit code %d, log %q", s.GetExitCode(), p.log("polite"))
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("a container that leaves at once took %v", d)
	}
	p.stop(chosen, 30)
	if s := p.status(chosen); s.GetExitCode() != 9 {
		t.Errorf("chosen: exit code %d, want 9 by the stop signal that it asked for", s.GetExitCode())
	}
	began = time.Now()
	p.stop(deaf, 2)
	if s, d := p.status(deaf), time.Since(began); s.GetExitCode() != 137 || d < 2*time.Second {
		t.Errorf("deaf: exit code %d after %v, want 137 after the grace period of 2 s", s.GetExitCode(), d)
	}
}

// awaitLog waits until a container has said something.
func (p *pod) awaitLog(name, want string) {
	p.t.Helper()
	ctx := p.context()
	for !strings.Contains(p.log(name), want) {
		select {
		case <-ctx.Done():
			p.t.Fatalf("%s does not say %q: %q", name, want, p.log(name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestExecProbes(t *testing.T) {
	p := runPod(t)
	c := p.run("c", forever)
	p.want(c, "exit 0", "")
	if _, code := p.exec(c, "exit 5"); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	began := time.Now()
	_, err := p.node.Runtime.ExecSync(p.context(), &runtime.ExecSyncRequest{
		ContainerId: c,
		Cmd:         []string{"sleep", "100"}, Timeout: 2,
	})
	if err == nil || !strings.Contains(err.Error(), "timeout") || time.Since(began) > 30*time.Second {
		t.Errorf("a probe that hangs = %v after %v, want a timeout after 2 s", err, time.Since(began))
	}
	p.want(c, "ps | grep -v grep | grep -c 'sleep 100'", "0") // it was killed
	const size = 8 << 20
	r, err := p.node.Runtime.ExecSync(p.context(), &runtime.ExecSyncRequest{
		ContainerId: c,
		Cmd:         []string{"/bin/sh", "-c", "yes 0123456789abcde | head -c 8388608"}, Timeout: 100,
	})
	if err != nil || len(r.GetStdout()) != size || strings.Count(string(r.GetStdout()), "0123456789abcde\n") != size/16 {
		t.Errorf("8 MiB of output: %d bytes, %v", len(r.GetStdout()), err)
	}
	if _, err := p.node.Runtime.ExecSync(p.context(), &runtime.ExecSyncRequest{
		ContainerId: c, Cmd: []string{"/no/such"},
		Timeout: 5,
	}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("exec of a program that is not there = %v", err)
	}
}

func TestLimitsOfSingleContainers(t *testing.T) {
	p := runPod(t)
	const mib = 1 << 20
	small := p.run("small", forever, resources(&runtime.LinuxContainerResources{
		MemoryLimitInBytes: 32 * mib, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512,
		Unified: map[string]string{"memory.oom.group": "1"},
	}))
	other := p.run("other", forever)
	p.want(small, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "33554432\n50000 100000")
	p.want(other, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "max\nmax 100000")
	update := &runtime.UpdateContainerResourcesRequest{
		ContainerId: small,
		Linux:       &runtime.LinuxContainerResources{MemoryLimitInBytes: 48 * mib, CpuQuota: 25000, CpuPeriod: 100000},
	}
	if _, err := p.node.Runtime.UpdateContainerResources(p.context(), update); err != nil {
		t.Fatal(err)
	}
	p.want(small, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "50331648\n25000 100000")

	hungry := p.run("hungry", "head -c 100000000 /dev/zero | tail -c 100000000 >/dev/null; echo survived; sleep 1000",
		resources(&runtime.LinuxContainerResources{
			MemoryLimitInBytes: 24 * mib, Unified: map[string]string{"memory.oom.group": "1"},
		}))
	if s := p.wait(hungry); s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 {
		t.Errorf("hungry ends with %q, %d, want OOMKilled, 137", s.GetReason(), s.GetExitCode())
	}
	p.countsWhatIsWritten(other)
	for _, id := range []string{small, other} {
		if s := p.status(id); s.GetState() != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s is %v, %s: it had nothing to do with it", s.GetMetadata().GetName(), s.GetState(), s.GetReason())
		}
	}
}

// kubectl describe shows for a pod whose VM does not come up: the phase, the reason and the end of the guest's
// console, and little enough of it for an event.
func TestAVMThatFailsLeavesAUsefulEvent(t *testing.T) {
	p := unstarted(t)
	_, err := p.node.Runtime.RunPodSandbox(p.context(), &runtime.RunPodSandboxRequest{
		Config:         p.config,
		RuntimeHandler: "coco-broken",
	})
	if err == nil {
		t.Fatal("a pod whose kernel has no first process runs")
	}
	text := err.Error()
	for _, want := range []string{
		"phase kernel: the guest's kernel panicked: VFS: Unable to mount root fs",
		"last console lines: | ", "Call Trace",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the error has no %q", want)
		}
	}
	if len(text) > 1024 || strings.Contains(text, "\n") {
		t.Errorf("the error has %d bytes and %d line breaks", len(text), strings.Count(text, "\n"))
	}
	t.Log(text)
}
