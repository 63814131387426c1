// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	judge "github.com/coco-shim/coco/policy/engine"
	"github.com/coco-shim/coco/policy/gen"
)

// id returns IDs of containers, as nerdctl makes them.
func id(n int) string { return strings.Repeat(fmt.Sprint(n), 64) }

var root = strings.Repeat("ab", 32)

// nerdctl is what nerdctl writes of a container on a bridge network, shortened.
func nerdctl(id string) *specs.Spec {
	files := "/var/lib/nerdctl/1935db59/containers/default/" + id + "/"
	bind := func(name string) specs.Mount {
		return specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: files + name, Options: []string{"rbind"}}
	}
	return &specs.Spec{
		Version: specs.Version, Hostname: id[:12], Annotations: map[string]string{"id": id, "nerdctl/state-dir": "/x/" + id},
		Root: &specs.Root{Path: "/x", Readonly: true},
		Process: &specs.Process{
			Args: []string{"app", "serve"}, Cwd: "/", Env: []string{"PATH=/bin", "HOSTNAME=" + id[:12], "A=b", "A=c"},
			User: specs.User{UID: 7, GID: 8}, Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			bind("resolv.conf"), bind("hostname"), bind("hosts"),
			{Destination: "/dev/shm", Type: "bind", Source: files + "mounts/shm", Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{
			Sysctl: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}, MaskedPaths: []string{"/proc/asound"},
			Namespaces: []specs.LinuxNamespace{
				{Type: "mount"}, {Type: "network"}, {Type: "uts"}, {Type: "pid"}, {Type: "ipc"}, {Type: "cgroup"},
			},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow},
		},
	}
}

func described1(t *testing.T, id string, s *specs.Spec) Container {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"ID": id, "Image": "app:1", "Spec": s, "Labels": map[string]string{nerdctlNetworks: `["bridge"]`},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func input(t *testing.T) Input {
	t.Helper()
	return Input{
		Container: described1(t, id(1), nerdctl(id(1))),
		Image:     gen.Image{Manifest: "sha256:" + root, Layers: []string{root}},
	}
}

// guest asks the engine of a policy what a shim asks a guest for a container.
type guest struct {
	*testing.T
	*judge.Engine
}

func (g guest) send(method string, req proto.Message) error {
	grant, err := g.Check("/grpc.AgentService/"+method, req)
	if err == nil {
		grant.Commit()
	}
	return err
}

// boot sends all that comes before the container.
func (g guest) boot(s *specs.Spec, id string) {
	g.Helper()
	for _, r := range []struct {
		method string
		req    proto.Message
	}{
		{"CreateSandbox", request.Sandbox(request.SandboxInput{
			ID: id, Spec: s, Alone: true, SharedShm: true, ShmBytes: 1 << 20,
		})},
		{"UpdateInterface", &agent.UpdateInterfaceRequest{Interface: &types.Interface{
			Name: "eth0", IPAddresses: []*types.IPAddress{{Address: "172.17.0.2", Mask: "16"}},
		}}},
	} {
		if err := g.send(r.method, r.req); err != nil {
			g.Errorf("%s: %v", r.method, err)
		}
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		text := s.Hostname + "\n"
		if err := g.send("CopyFile", &agent.CopyFileRequest{
			Path: request.GuestCopy(id, "/etc/"+name), FileSize: int64(len(text)), FileMode: 0o100644, DirMode: 0o755,
			Data: []byte(text),
		}); err != nil {
			g.Errorf("copy %s: %v", name, err)
		}
	}
}

// asked is the request that the shim makes of a specification.
func asked(t *testing.T, s *specs.Spec, id string) *agent.CreateContainerRequest {
	t.Helper()
	out, err := request.Convert(request.Input{
		ID: id, Spec: s, SharedShm: true, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := layer.Params{Salt: make([]byte, 32), DataBlocks: 8, HashOffset: 8 * 4096}
	for i := range p.RootHash {
		p.RootHash[i] = 0xab
	}
	at := hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: "0:0"}
	disks, err := rootfs.Storages(id, []rootfs.Attached{{Params: p, Address: at}}, rootfs.Upper{MiB: 64})
	if err != nil {
		t.Fatal(err)
	}
	return request.Container(request.ContainerInput{ID: id, OCI: out.OCI, Storages: disks})
}

// TestAPolicyAllowsTheNextContainerOfTheSameCommandLine: the next one has another ID, and so another host name.
func TestAPolicyAllowsTheNextContainerOfTheSameCommandLine(t *testing.T) {
	p, notes, err := Policy(input(t))
	if err != nil || len(notes) != 1 || !strings.Contains(notes[0], "host name") {
		t.Fatal(err, notes)
	}
	for what, change := range map[string]func(*specs.Spec){
		"":           func(*specs.Spec) {},
		"argument":   func(s *specs.Spec) { s.Process.Args[1] = "other" },
		"variable":   func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A=d") },
		"preload":    func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "LD_PRELOAD=/x") },
		"host name":  func(s *specs.Spec) { s.Process.Env[1] = "HOSTNAME=another" },
		"user":       func(s *specs.Spec) { s.Process.User.UID = 0 },
		"capability": func(s *specs.Spec) { s.Process.Capabilities.Bounding = nil },
		"limit":      func(s *specs.Spec) { s.Process.Rlimits[0].Hard = 3 },
		"mount":      func(s *specs.Spec) { s.Mounts = s.Mounts[1:] },
		"root":       func(s *specs.Spec) { s.Root.Readonly = false },
		"filter":     func(s *specs.Spec) { s.Linux.Seccomp = nil },
		"sysctl":     func(s *specs.Spec) { s.Linux.Sysctl = nil },
		"masks":      func(s *specs.Spec) { s.Linux.MaskedPaths = nil },
		"annotation": func(s *specs.Spec) { s.Annotations["a"] = "b" },
	} {
		g, next := guest{t, judge.New(p)}, nerdctl(id(2))
		g.boot(next, id(2))
		change(next)
		err := g.send("CreateContainer", asked(t, next, id(2)))
		if (err == nil) != (what == "") {
			t.Errorf("with another %q: %v", what, err)
		}
	}
}

// TestAHostNameThatWasGivenIsPinned, with the file that has it.
func TestAHostNameThatWasGivenIsPinned(t *testing.T) {
	in := input(t)
	in.Container.Spec.Hostname = "given"
	p, notes, err := Policy(in)
	if err != nil || len(notes) != 0 {
		t.Fatal(err, notes)
	}
	if p.Pod.Hostname.Is == nil || *p.Pod.Hostname.Is != "given" {
		t.Errorf("the host name is %+v", p.Pod.Hostname)
	}
	for _, m := range p.Containers[0].Mounts {
		if m.Destination == "/etc/hostname" && m.Source.Copy.Rule != policy.ContentDigest {
			t.Errorf("/etc/hostname is %+v", m.Source.Copy)
		}
	}
}

// TestOnlyTheInterfacesThatAreKnownAreAllowed.
func TestOnlyTheInterfacesThatAreKnownAreAllowed(t *testing.T) {
	for want, change := range map[string]func(*described){
		"":          func(*described) {},
		"eth0":      func(d *described) { d.Labels = map[string]string{nerdctlNetworks: `["bridge"]`} },
		"eth0 eth1": func(d *described) { d.Labels = map[string]string{nerdctlNetworks: `["bridge","db"]`} },
	} {
		d := described{Spec: &specs.Spec{}}
		change(&d)
		got, err := interfaces(d)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("interfaces = %q, %v, want %q", got, err, want)
		}
	}
	if got, err := interfaces(described{
		Spec: &specs.Spec{}, Labels: map[string]string{nerdctlNetworks: `["none"]`},
	}); err != nil || len(got) > 0 {
		t.Errorf("interfaces without a network = %q, %v", got, err)
	}
}

// TestFilesOfTheHostAreNoPartOfAPolicy unless the owner says so.
func TestFilesOfTheHostAreNoPartOfAPolicy(t *testing.T) {
	for _, tc := range []struct {
		mount specs.Mount
		want  string // of the error; "": none with Unpinned
	}{
		{specs.Mount{Destination: "/c", Type: "bind", Source: "/srv/c", Options: []string{"rbind", "ro"}}, ""},
		{specs.Mount{Destination: "/c", Type: "bind", Source: "/srv/c", Options: []string{"rbind"}}, "keeps no data there"},
		{specs.Mount{Destination: "/c", Type: "ext4", Source: "/dev/sda"}, "cannot be mounted in the VM"},
	} {
		in := input(t)
		in.Container.Spec.Mounts = append(in.Container.Spec.Mounts, tc.mount)
		_, _, err := Policy(in)
		if want := tc.want + map[bool]string{true: "--allow-unpinned"}[tc.want == ""]; err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", tc.mount, err, want)
		}
		in.Unpinned = true
		p, _, err := Policy(in)
		if (err == nil) != (tc.want == "") {
			t.Errorf("%+v with --allow-unpinned: %v", tc.mount, err)
		}
		if err == nil {
			list := p.Containers[0].Mounts
			want := policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}}
			if d := cmp.Diff(want, list[len(list)-1].Source); d != "" || path.Base(list[len(list)-1].Destination) != "c" {
				t.Errorf("the mount's source (-want +got):\n%s", d)
			}
		}
	}
}

// TestNoPolicyOfWhatAPodOfItsOwnCannotHave.
func TestNoPolicyOfWhatAPodOfItsOwnCannotHave(t *testing.T) {
	in := input(t)
	in.Container.Spec.Linux.Namespaces = in.Container.Spec.Linux.Namespaces[2:]
	if _, _, err := Policy(in); err == nil || !strings.Contains(err.Error(), "--net host") {
		t.Errorf("with the host's network: %v", err)
	}
	in = input(t)
	in.Container.Spec.Linux.Namespaces[3].Path = "/proc/7/ns/pid"
	if _, _, err := Policy(in); err == nil || !strings.Contains(err.Error(), "processes of another container") {
		t.Errorf("with another container's processes: %v", err)
	}
}

func TestDescriptionsThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		``:           "no description of a container in JSON",
		`[]`:         "describes 0 containers",
		`[{},{}]`:    "describes 2 containers",
		`{"ID":"a"}`: "no description of a container with its ID",
		`[{"Id":"a","Config":{"Image":"b"},"HostConfig":{}}]`:                                             "without the specification that the runtime gets",
		`{"ID":"a","Spec":{"process":{},"linux":{},"annotations":{"` + contract.CRISandboxID + `":"s"}}}`: "pod of Kubernetes",
		`{"ID":"a","Labels":{"nerdctl/networks":"x"},"Spec":{"process":{},"linux":{}}}`:                   "label nerdctl/networks",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, want %q", text, err, want)
		}
	}
}
