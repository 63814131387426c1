// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/tests/harness"
)

var number atomic.Int64

// pod is a sandbox of the node under test.
type pod struct {
	t      *testing.T
	node   *harness.CRI
	id     string
	config *runtime.PodSandboxConfig
}

// podConfig is a pod as kubelet describes one: containers with process ids of their own.
func podConfig(t *testing.T, change ...func(*runtime.PodSandboxConfig)) *runtime.PodSandboxConfig {
	t.Helper()
	name := fmt.Sprintf("pod-%d-%d", os.Getpid(), number.Add(1))
	c := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name},
		Hostname: name, LogDirectory: t.TempDir(),
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
			Seccomp:          &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
		}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// unstarted is a pod on the node that was not made.
func unstarted(t *testing.T) *pod {
	t.Helper()
	return &pod{t: t, node: node(t), config: podConfig(t)}
}

// runPod starts a pod, which ends with the test.
func runPod(t *testing.T, change ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	p := &pod{t: t, node: node(t), config: podConfig(t, change...)}
	p.runUnder("coco")
	return p
}

// runUnder starts the pod under a handler, until the test ends.
func (p *pod) runUnder(handler string) {
	p.t.Helper()
	r, err := p.node.Runtime.RunPodSandbox(p.context(), &runtime.RunPodSandboxRequest{
		Config:         p.config,
		RuntimeHandler: handler,
	})
	if err != nil {
		p.t.Fatalf("RunPodSandbox: %v", err)
	}
	p.id = r.GetPodSandboxId()
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := p.node.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			p.t.Errorf("StopPodSandbox: %v", err)
		}
		if _, err := p.node.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			p.t.Errorf("RemovePodSandbox: %v", err)
		}
	})
}

// context bounds one call; under TCG a VM takes seconds to boot, more on a busy machine.
func (p *pod) context() context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	p.t.Cleanup(cancel)
	return ctx
}

// create makes a container that runs a shell command.
func (p *pod) create(name, script string, change ...func(*runtime.ContainerConfig)) string {
	p.t.Helper()
	c := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: harness.Image},
		Command: []string{"/bin/sh", "-c", script}, LogPath: name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: p.config.GetLinux().GetSecurityContext().
					GetNamespaceOptions().GetPid()},
				Seccomp: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
			},
		},
	}
	for _, f := range change {
		f(c)
	}
	r, err := p.node.Runtime.CreateContainer(p.context(), &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: c,
		SandboxConfig: p.config,
	})
	if err != nil {
		p.t.Fatalf("CreateContainer(%s): %v", name, err)
	}
	return r.GetContainerId()
}

func (p *pod) start(id string) error {
	_, err := p.node.Runtime.StartContainer(p.context(), &runtime.StartContainerRequest{ContainerId: id})
	return err
}

// run creates and starts a container.
func (p *pod) run(name, script string, change ...func(*runtime.ContainerConfig)) string {
	p.t.Helper()
	id := p.create(name, script, change...)
	if err := p.start(id); err != nil {
		p.t.Fatalf("StartContainer(%s): %v", name, err)
	}
	return id
}

// forever is a container that runs until SIGTERM.
const forever = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"

// exec runs a shell command in a container and returns its output and exit code.
func (p *pod) exec(id, script string) (string, int32) {
	p.t.Helper()
	r, err := p.node.Runtime.ExecSync(p.context(), &runtime.ExecSyncRequest{
		ContainerId: id,
		Cmd:         []string{"/bin/sh", "-c", script}, Timeout: 60,
	})
	if err != nil {
		p.t.Fatalf("ExecSync(%q): %v", script, err)
	}
	return string(r.GetStdout()) + string(r.GetStderr()), r.GetExitCode()
}

// want runs a shell command and compares its output, without white space around it.
func (p *pod) want(id, script, want string) {
	p.t.Helper()
	got, code := p.exec(id, script)
	if got = strings.TrimSpace(got); got != want {
		p.t.Errorf("%s = %q (exit code %d), want %q", script, got, code, want)
	}
}

func (p *pod) status(id string) *runtime.ContainerStatus {
	p.t.Helper()
	r, err := p.node.Runtime.ContainerStatus(p.context(), &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.t.Fatalf("ContainerStatus: %v", err)
	}
	return r.GetStatus()
}

// wait waits until a container has exited, as kubelet does: by looking.
func (p *pod) wait(id string) *runtime.ContainerStatus {
	p.t.Helper()
	ctx := p.context()
	for {
		if s := p.status(id); s.GetState() == runtime.ContainerState_CONTAINER_EXITED {
			return s
		}
		select {
		case <-ctx.Done():
			p.t.Fatalf("container %s does not end", id)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// log returns a container's log without CRI's prefixes.
func (p *pod) log(name string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.config.GetLogDirectory(), name+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	return out.String()
}

func (p *pod) stop(id string, grace int64) {
	p.t.Helper()
	if _, err := p.node.Runtime.StopContainer(p.context(), &runtime.StopContainerRequest{
		ContainerId: id,
		Timeout:     grace,
	}); err != nil {
		p.t.Fatalf("StopContainer: %v", err)
	}
}

// Changes of configurations.

func sharePIDs(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
}

func security(f func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { f(c.Linux.SecurityContext) }
}

func resources(r *runtime.LinuxContainerResources) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Linux.Resources = r }
}
