// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testvm"
	plan "github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
	"github.com/coco-shim/coco/trust/workload"
)

// asking is what the containers of TestWorkloadAPI run, by their names in the policy.
var asking = map[string][]string{"a": {"sh"}, "b": {"sh", "-s", "b"}, "silent": {"sh", "-s", "silent"}}

// workloadPolicy lets a and b ask for different things, and silent for nothing.
func workloadPolicy(t *testing.T, layer plan.Attached) *initdata.Document {
	t.Helper()
	p := &policy.Policy{
		APIVersion: policy.APIVersion,
		Pod:        policy.Pod{Hostname: policy.Value{Is: new("pod-host")}, PortForward: []uint16{8080}, WorkloadPort: 8006},
	}
	for _, name := range []string{"a", "b", "silent"} {
		c := policytest.Container(name, []string{layer.Hex()}, nil, specFor(name, slices.Clone(asking[name])...), false)
		c.Restart = policy.Never
		c.Allow = policy.Capabilities{Logs: true, Stdin: true}
		p.Containers = append(p.Containers, c)
	}
	p.Containers[0].Workload = policy.Workload{
		Resources: []string{"kbs:///r/t/a"}, Calls: []string{policy.CallInfo, policy.CallEvidence},
	}
	p.Containers[1].Workload = policy.Workload{Resources: []string{"kbs:///r/t/b"}}
	text, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName: string(text), initdata.FileAA: "insecure = true\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// askingBottom is a root file system with the program ask.
func askingBottom(t *testing.T) (dir string) {
	t.Helper()
	dir = bottom(t)
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "bin/ask"),
		"./tests/agent/testdata/ask")
	build.Dir, build.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build ask: %v\n%s", err, out)
	}
	return dir
}

// bootAsking boots a guest whose containers may ask it, and makes its sandbox.
func bootAsking(t *testing.T) *pinned {
	t.Helper()
	p := bootTrust(t, func(l plan.Attached) *initdata.Document { return workloadPolicy(t, l) })
	if _, err := p.agent.CreateSandbox(within(t, 20*time.Second), &pb.CreateSandboxRequest{
		Hostname: "pod-host", SandboxId: "pod",
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

// bootTrust boots a guest with the part of the image that answers its containers, and further arguments for QEMU.
// bind makes the initdata for the layer of its containers.
func bootTrust(t *testing.T, bind func(plan.Attached) *initdata.Document, args ...string) *pinned {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	part, err := os.ReadFile(filepath.Join(testvm.GuestDir(), contract.PartTrust+contract.PartSuffix))
	if err != nil {
		t.Fatal(err)
	}
	dir := askingBottom(t)
	d := newDisks(t)
	d.n = 1
	p := &pinned{layer: d.add(dir, nil)}
	d.drive(part, "scsi-hd,scsi-id=1,lun=0,serial="+contract.PartTrust)
	doc := bind(p.layer)
	d.n = 0
	d.drive(doc.Disk(), "scsi-hd,scsi-id=0,lun=0,serial="+initdata.DiskID)
	params := fmt.Sprintf("%s %s=%s:%s %s=1", contract.Cmdline, contract.ParamInitdata, doc.Algorithm,
		hex.EncodeToString(doc.Digest()), contract.ParamPortForward)
	p.vm = boot(t, buildInitrd(t), append(append(d.args, "-append", params), args...)...)
	return p
}

// beginAsking starts a container.
func (p *pinned) beginAsking(t *testing.T, name, id string) *shell {
	t.Helper()
	storages, err := plan.Storages(id, []plan.Attached{p.layer}, plan.Upper{MiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{streams: p.open(t)}
	if _, err := p.agent.CreateContainer(within(t, 60*time.Second), &pb.CreateContainerRequest{
		ContainerId: id, ExecId: id, OCI: specFor(id, slices.Clone(asking[name])...), Storages: storages,
		StdinPort: s.ports[0], StdoutPort: s.ports[1], StderrPort: s.ports[2],
	}); err != nil {
		t.Fatalf("CreateContainer %s: %v", name, err)
	}
	p.start(t, id)
	return s
}

// TestWorkloadAPI: containers of a real guest ask it over their sockets and over the pod's port. Each gets what the
// policy opens to it; the host's port-forward gets nothing.
func TestWorkloadAPI(t *testing.T) {
	p := bootAsking(t)
	shells := map[string]*shell{}
	for name := range asking {
		shells[name] = p.beginAsking(t, name, "id-"+name)
	}
	bound := workload.ReportData("a", []byte("hello"))
	const socket, port = "unix " + contract.WorkloadSocket, "tcp4 127.0.0.1:8006"
	for _, tc := range []struct{ container, way, path, want string }{
		{"a", socket, "/info", `"tee":"sample"`},
		{"a", port, "/info", `"tee":"sample"`},
		{"a", socket, "/aa/evidence?runtime_data=hello", base64.StdEncoding.EncodeToString(bound[:])},
		{"a", port, "/aa/evidence?runtime_data=hello", base64.StdEncoding.EncodeToString(bound[:])},
		{"a", socket, "/cdh/resource/r/t/a", "500 [config] initdata names no key broker"}, // it was allowed to ask
		{"a", port, "/cdh/resource/r/t/a", "500 [config] initdata names no key broker"},
		{"a", port, "/cdh/resource/r/t/b", "403 "},
		{"b", socket, "/cdh/resource/r/t/b", "500 [config] initdata names no key broker"},
		{"b", port, "/cdh/resource/r/t/b", "500 [config] initdata names no key broker"},
		{"b", socket, "/cdh/resource/r/t/a", "403 the policy does not open this secret to container b"},
		{"b", port, "/cdh/resource/r/t/a", "403 the policy does not open this secret to container b"},
		{"b", port, "/aa/evidence?runtime_data=hello", "404 the policy does not open /aa/evidence to container b"},
		{"silent", socket, "/info", "no such file or directory"},
		{"silent", port, "/info", "403 only containers"},
		{"silent", port, "/cdh/resource/r/t/a", "403 only containers"},
	} {
		got := shells[tc.container].ask(t, "ask "+tc.way+" '"+tc.path+"'")
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s asks over %s for %s: %s; want %q", tc.container, tc.way, tc.path, got, tc.want)
		}
	}
	answer := p.greet(t, contract.PortForward, "8006\n")
	if !strings.Contains(answer, "denied [capability] port") || !strings.Contains(answer, "workload API") {
		t.Errorf("the host connects to the API's port: %q", answer)
	}
}
