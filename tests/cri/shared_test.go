// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/tests/harness"
)

func TestContainersShareAPod(t *testing.T) {
	t.Parallel()
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Hostname = "the-pod"
		c.Linux.Sysctls = map[string]string{
			"kernel.shmmni": "1234", "net.ipv4.ip_local_port_range": "20000 20100",
			"fs.mqueue.msg_max": "33",
		}
		c.DnsConfig = &runtime.DNSConfig{
			Servers: []string{"192.0.2.53"}, Searches: []string{"svc.test"},
			Options: []string{"ndots:5"},
		}
	})
	shim, vmm, err := harness.Pids(p.id)
	if err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(t.TempDir(), "hosts") // kubelet makes the file and mounts it
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n10.0.0.1 the-pod\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mount := func(c *runtime.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: hosts, ContainerPath: "/etc/hosts"})
	}
	a := p.run("a", "echo from a >/dev/shm/file; nc -l -p 8080 -e echo hello; "+forever, mount)
	b := p.run("b", forever, mount)

	if s, v, err := harness.Pids(p.id); s != shim || v != vmm || err != nil {
		t.Errorf("shim and VMM are %d and %d, %v; they were %d and %d: one of each per pod", s, v, err, shim, vmm)
	}
	for _, c := range []string{a, b} {
		p.want(c, "hostname", "the-pod")
		p.want(c, "cat /proc/sys/kernel/shmmni", "1234")
		p.want(c, "cat /proc/sys/fs/mqueue/msg_max", "33")
		p.want(c, "tr '\\t' ' ' </proc/sys/net/ipv4/ip_local_port_range", "20000 20100")
		p.want(c, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0") // containerd sets it on every pod
		p.want(c, "cat /dev/shm/file", "from a")
		p.want(c, "grep the-pod /etc/hosts", "10.0.0.1 the-pod")
		p.want(c, "cat /etc/resolv.conf", "search svc.test\nnameserver 192.0.2.53\noptions ndots:5")
	}
	p.want(b, "nc 127.0.0.1 8080 </dev/null", "hello")
	for _, ns := range []string{"ipc", "uts", "net"} {
		one, _ := p.exec(a, "readlink /proc/self/ns/"+ns)
		p.want(b, "readlink /proc/self/ns/"+ns, strings.TrimSpace(one))
	}
	one, _ := p.exec(a, "readlink /proc/1/ns/pid")
	if other, _ := p.exec(b, "readlink /proc/1/ns/pid"); one == other {
		t.Errorf("both containers are in the pid namespace %s although the pod does not share it", one)
	}
}

func TestSharedProcessIDs(t *testing.T) {
	t.Parallel()
	p := runPod(t, sharePIDs)
	a := p.run("a", forever)
	b := p.run("b", "sleep 4321")
	if out, _ := p.exec(a, "ps -o pid,args"); !strings.Contains(out, "sleep 4321") {
		t.Errorf("a does not see the process of b:\n%s", out)
	}
	if out, _ := p.exec(b, "cat /proc/1/cmdline"); !strings.HasPrefix(out, "pause") {
		t.Errorf("the first process of the pod is %q, want its own init", out)
	}
	// The end of one container leaves the other alone, and takes its own processes along.
	p.exec(b, "sleep 8765 >/dev/null 2>&1 &")
	p.stop(b, 1)
	if out, _ := p.exec(a, "ps -o pid,args | grep -v grep"); strings.Contains(out, "4321") ||
		strings.Contains(out, "8765") {
		t.Errorf("processes of a stopped container live on:\n%s", out)
	}
	if s := p.status(a); s.GetState() != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a is %v", s.GetState())
	}
}

// kubectl debug --target: an ephemeral container that sees another's processes.
func TestAnEphemeralContainerSeesItsTarget(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	p.wait(p.run("init", "true"))
	app := p.run("app", "sleep 4321")
	target := func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: app}
	}
	debug := p.run("debug", forever, target)
	p.want(debug, "tr '\\0' ' ' </proc/1/cmdline", "sleep 4321")
	if out, _ := p.exec(app, "ps -o args"); !strings.Contains(out, "trap") {
		t.Errorf("the debugger is not among the target's processes:\n%s", out)
	}
	// With two candidates containerd does not tell which one is meant.
	p.run("second", forever)
	id := p.create("debug2", forever, target)
	if err := p.start(id); err == nil || !strings.Contains(err.Error(), "shareProcessNamespace") {
		t.Errorf("a second debugger among several containers = %v, want a refusal that says what to do", err)
	}
}
