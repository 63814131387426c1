// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sandbox drives pods of real VMs through containerd's CRI as the kubelet does, by the pause
// container's way and by the sandbox API (sandboxer = "shim"), and measures them.
package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/tests/harness"
)

const (
	viaTask    = "coco"      // the sandbox is a container of the task API
	viaSandbox = "coco-shim" // the sandbox API
)

var shared struct {
	sync.Mutex
	cri *harness.CRI
	dir string
}

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if shared.cri != nil {
		if err := errors.Join(shared.cri.Stop(), os.RemoveAll(shared.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/coco-test/*", "/sys/fs/cgroup/*/coco-test",
		"/sys/fs/cgroup/coco-test/*", "/sys/fs/cgroup/coco-test",
	} {
		groups, _ := filepath.Glob(pattern) // the pods' parents, which are the kubelet's to remove
		for _, g := range groups {
			_ = syscall.Rmdir(g) // files among them are no directories
		}
	}
	os.Exit(code)
}

// bed is the shared node and what tests ask of it.
type bed struct {
	*harness.CRI
	t *testing.T
}

// node returns the shared containerd, started on first use.
func node(t *testing.T) bed {
	t.Helper()
	if testing.Short() {
		t.Skip("boots VMs")
	}
	if os.Geteuid() != 0 {
		absent(t, "starts containerd and VMs: run as root")
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.cri != nil {
		return bed{shared.cri, t}
	}
	dir, err := os.MkdirTemp("/var/tmp", "coco-sb-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if shared.cri == nil { // skipped or failed; TestMain removes the directory of one that started
			_ = os.RemoveAll(dir)
		}
	}()
	c, err := harness.StartCRI(context.WithoutCancel(t.Context()), "2.4", dir, viaTask)
	if errors.Is(err, harness.ErrAbsent) {
		absent(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	shared.cri, shared.dir = c, dir
	// A group weighs as much as one process beside it: on a busy machine all pods together would crawl.
	if err := os.Mkdir("/sys/fs/cgroup/cpu/coco-test", 0o755); err == nil { // not where there is no cgroup v1
		_ = os.WriteFile("/sys/fs/cgroup/cpu/coco-test/cpu.shares", []byte("16384"), 0) // the default works too
	}
	return bed{c, t}
}

// absent skips, or fails where everything is required, as in CI.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COCO_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func (b bed) ctx(most time.Duration) context.Context {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), most)
	b.t.Cleanup(cancel)
	return ctx
}

// podConfig describes a pod as the kubelet does.
func (b bed) podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname: name, LogDirectory: b.t.TempDir(),
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/coco-test/" + name,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
}

// pod runs a sandbox and removes it when the test ends.
func (b bed) pod(handler string, c *cri.PodSandboxConfig) string {
	b.t.Helper()
	r, err := b.Runtime.RunPodSandbox(b.ctx(2*time.Minute), &cri.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	if err != nil {
		b.t.Fatalf("run pod %s under %s: %v", c.GetMetadata().GetName(), handler, err)
	}
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.tail()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		b.remove(ctx, r.GetPodSandboxId())
	})
	return r.GetPodSandboxId()
}

func (b bed) remove(ctx context.Context, pod string) {
	b.t.Helper()
	if _, err := b.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		b.t.Errorf("stop pod: %v", err)
	}
	if _, err := b.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		b.t.Errorf("remove pod: %v", err)
	}
}

// container makes and starts a container.
func (b bed) container(pod string, p *cri.PodSandboxConfig, name string, command ...string) string {
	b.t.Helper()
	return b.containerOf(pod, p, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: harness.Image},
		Command: command, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	})
}

func (b bed) containerOf(pod string, p *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	b.t.Helper()
	r, err := b.Runtime.CreateContainer(b.ctx(2*time.Minute), &cri.CreateContainerRequest{
		PodSandboxId: pod, Config: c,
		SandboxConfig: p,
	})
	if err != nil {
		b.t.Fatalf("create container %s: %v", c.GetMetadata().GetName(), err)
	}
	if _, err := b.Runtime.StartContainer(b.ctx(2*time.Minute),
		&cri.StartContainerRequest{ContainerId: r.GetContainerId()}); err != nil {
		b.t.Fatalf("start container %s: %v", c.GetMetadata().GetName(), err)
	}
	return r.GetContainerId()
}

// sh runs a command line in a container and returns its output.
func (b bed) sh(container, line string) string {
	b.t.Helper()
	r, err := b.Runtime.ExecSync(b.ctx(30*time.Second), &cri.ExecSyncRequest{
		ContainerId: container,
		Cmd:         []string{"/bin/sh", "-c", line}, Timeout: 20,
	})
	if err != nil || r.GetExitCode() != 0 {
		b.t.Errorf("sh -c %q = %d, %v: %s%s", line, r.GetExitCode(), err, r.GetStdout(), r.GetStderr())
	}
	return strings.TrimSpace(string(r.GetStdout()))
}

// leavesNothing checks that a pod that was removed has gone with all it had. Other pods may come and go
// meanwhile, so only what names this one counts.
func (b bed) leavesNothing(ctx context.Context, pod, name string) {
	b.t.Helper()
	sum := sha256.Sum256([]byte("k8s.io\x00" + pod))
	own := []string{pod, hex.EncodeToString(sum[:12]), "/coco-test/" + name}
	deadline := time.Now().Add(10 * time.Second)
	for {
		all, err := harness.TakeTraces()
		if err != nil {
			b.t.Fatal(err)
		}
		var left []string
		for line := range all {
			if slices.ContainsFunc(own, func(s string) bool { return strings.Contains(line, s) }) &&
				!strings.HasSuffix(line, own[2]) {
				left = append(left, line) // the parent group is the kubelet's
			}
		}
		if shim, vmm, _ := harness.Pids(pod); shim != 0 || vmm != 0 {
			left = append(left, fmt.Sprintf("shim %d, VMM %d", shim, vmm))
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			b.t.Errorf("pod %s left %v", name, left)
			return
		}
		time.Sleep(50 * time.Millisecond) // the kernel has no event for "nothing is left"
	}
}

// tail shows the end of the daemon's log, which the shims' logs go to.
func (b bed) tail() {
	data, err := os.ReadFile(b.Log())
	if err != nil {
		b.t.Log(err)
		return
	}
	lines := strings.Split(string(data), "\n")
	b.t.Logf("containerd's log ends:\n%s", strings.Join(lines[max(len(lines)-12, 0):], "\n"))
}

// residentKiB is a process's VmRSS.
func residentKiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	return strconv.ParseFloat(strings.Fields(rest)[0], 64)
}
