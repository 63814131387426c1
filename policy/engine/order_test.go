// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// several returns a pod with three containers, c0 to c2.
func several(t *testing.T) *pod {
	t.Helper()
	for seed := uint64(0); ; seed++ {
		if p := newPod(t, seed); len(p.creates) == 3 {
			return p
		}
	}
}

// denial checks the text of an error; "" is none.
func denial(t *testing.T, what string, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "denied ")
	}
	if got != want {
		t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
	}
}

// TestOnlyItsOwnMessageIsAdmitted: a method with the message of another one.
func TestOnlyItsOwnMessageIsAdmitted(t *testing.T) {
	e := one(t).until(t, 0, true)
	for _, name := range []string{
		"CreateSandbox", "CreateContainer", "ExecProcess", "CopyFile", "UpdateContainer", "UpdateInterface", "UpdateRoutes",
		"AddARPNeighbors",
	} {
		denial(t, name, call(e, name, &pb.CheckRequest{}),
			"[method] request: expected a message of this method, got CheckRequest")
	}
}

// TestTheNearestContainerIsNamed: by the name in the request, else by the number of differences.
func TestTheNearestContainerIsNamed(t *testing.T) {
	p := several(t)
	e := p.until(t, 0, false)
	for i, c := range p.policy.Containers {
		m := proto.CloneOf(p.creates[i])
		m.OCI.Process.Cwd = "/other"
		why := "/OCI.Process.Cwd: expected " + compare.Quote(c.Process.Cwd) + `, got "/other"; allow with: containers[` +
			c.Name + `].process.cwd = "/other"`
		denial(t, c.Name, call(e, "CreateContainer", m), "[value] "+c.Name+why)
		m.OCI.Annotations[contract.CRIContainerName] = "x" // a further difference
		denial(t, c.Name+" under another name", call(e, "CreateContainer", m), "[value] "+c.Name+why)
	}
	p.policy.Containers = nil
	denial(t, "of none", call(New(p.policy), "CreateSandbox", p.sandbox), "")
	e = p.until(t, -1, false)
	denial(t, "of none", call(e, "CreateContainer", p.creates[0]),
		"[value] container: expected one of the policy, which has none, got one")
}

// TestNamesDecideNothing: a container without a name is found, and of two alike one after the other is made.
func TestNamesDecideNothing(t *testing.T) {
	p := one(t)
	c := &p.policy.Containers[0]
	c.Annotations = slices.DeleteFunc(c.Annotations, func(a policy.Annotation) bool {
		return a.Key == contract.CRIContainerName
	})
	twin := *c
	twin.Name = "twin"
	p.policy.Containers = append(p.policy.Containers, twin)
	m := proto.CloneOf(p.creates[0])
	delete(m.OCI.Annotations, contract.CRIContainerName)
	e := p.until(t, -1, false)
	denial(t, "the first", call(e, "CreateContainer", m), "")
	denial(t, "its twin", call(e, "CreateContainer", again(t, m, "second")), "")
	denial(t, "a third", call(e, "CreateContainer", again(t, m, "third")),
		"[order] c0/container: expected one live instance, got a second one")
	m = again(t, m, "fourth")
	m.OCI.Annotations[contract.CRIContainerName] = "twin" // which neither has
	if err := call(e, "CreateContainer", m); err == nil || !strings.Contains(err.Error(), "denied [value] twin/OCI.Ann") {
		t.Errorf("of two that are as near, the named one: %v", err)
	}
}

// TestTheLivesOfAContainer: which instance may follow which.
func TestTheLivesOfAContainer(t *testing.T) {
	p := one(t)
	c, m := &p.policy.Containers[0], p.creates[0]
	id := m.GetContainerId()
	next := func(e *Engine) error { return call(e, "CreateContainer", again(t, m, "next")) }
	for _, tc := range []struct {
		what          string
		kind, restart string
		code          int
		want          string
	}{
		{"always", policy.App, policy.Always, 0, ""},
		{"on failure, after one", policy.App, policy.OnFailure, 1, ""},
		{
			"on failure, after success", policy.App, policy.OnFailure, 0,
			`[order] c0/container: expected no instance after exit code 0, by restart "OnFailure", got one; ` +
				`allow with: containers[c0].restart = "Always"`,
		},
		{
			"never", policy.App, policy.Never, 3,
			`[order] c0/container: expected no instance after exit code 3, by restart "Never", got one; ` +
				`allow with: containers[c0].restart = "Always"`,
		},
		{
			"an init container", policy.Init, policy.Always, 0,
			"[order] c0/container: expected an init container to run once, got a repetition after its success",
		},
		{"an init container that failed", policy.Init, policy.Always, 1, ""},
		{"a sidecar", policy.Sidecar, policy.Always, 0, ""},
	} {
		c.Kind, c.Restart = tc.kind, tc.restart
		e := p.until(t, 0, true)
		e.Exited("unknown", 9)
		denial(t, tc.what+", alive", next(e), "[order] c0/container: expected one live instance, got a second one")
		e.Exited(id, tc.code)
		e.Exited(id, tc.code+1-2*(tc.code&1)) // the first end counts
		denial(t, tc.what, next(e), tc.want)
	}
	c.Kind, c.Restart = policy.App, policy.Never
	e := p.until(t, 0, true)
	if err := call(e, "RemoveContainer", &pb.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	denial(t, "one that was removed before its end", next(e), "") // it was never seen to end
	for _, name := range []string{"StartContainer", "ExecProcess", "SignalProcess"} {
		req := map[string]proto.Message{
			"StartContainer": &pb.StartContainerRequest{ContainerId: id}, "ExecProcess": p.execs[0],
			"SignalProcess": &pb.SignalProcessRequest{ContainerId: id},
		}[name]
		denial(t, name+" of a removed one", call(e, name, req),
			"[id] container_id: expected the id of a container of this guest, got "+compare.Quote(id))
	}
	e = p.until(t, 0, false)
	if err := call(e, "CreateContainer", m); err != nil {
		t.Fatal(err)
	}
	e.Exited(id, 0)
	denial(t, "a start after the end", call(e, "StartContainer", &pb.StartContainerRequest{ContainerId: id}),
		"[order] c0/container_id: expected a container that was not started before, got one that was")
}

// TestWhatComesFirstInAPod: each container waits for the init containers and sidecars before it.
func TestWhatComesFirstInAPod(t *testing.T) {
	for _, tc := range []struct {
		kind    string
		started bool
		ended   bool
		code    int
		want    string
	}{
		{policy.App, false, false, 0, ""},
		{policy.Sidecar, false, false, 0, "[order] c1/container: expected that sidecar c0 was started before, " +
			"got this container first"},
		{policy.Sidecar, true, false, 0, ""},
		{policy.Sidecar, true, true, 1, ""},
		{policy.Init, false, false, 0, "[order] c1/container: expected that init container c0 has exited with 0 before, " +
			"got this container first"},
		{policy.Init, true, false, 0, "[order] c1/container: expected that init container c0 has exited with 0 before, " +
			"got this container first"},
		{policy.Init, true, true, 1, "[order] c1/container: expected that init container c0 has exited with 0 before, " +
			"got this container first"},
		{policy.Init, true, true, 0, ""},
	} {
		p := several(t)
		p.policy.Containers[0].Kind = tc.kind
		e := p.until(t, 0, false)
		id := p.creates[0].GetContainerId()
		if err := call(e, "CreateContainer", p.creates[0]); err != nil {
			t.Fatal(err)
		}
		if tc.started {
			if err := call(e, "StartContainer", &pb.StartContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		}
		if tc.ended {
			e.Exited(id, tc.code)
		}
		denial(t, tc.kind, call(e, "CreateContainer", p.creates[1]), tc.want)
	}
	p := several(t)
	p.policy.Containers[1].Kind = policy.Init
	denial(t, "none of those before", call(p.until(t, -1, false), "CreateContainer", p.creates[1]), "")
	p.policy.Containers[0].Kind = policy.Sidecar
	denial(t, "a sidecar before", call(p.until(t, -1, false), "CreateContainer", p.creates[1]),
		"[order] c1/container: expected that sidecar c0 was started before, got this container first")
	e := p.until(t, 0, true)
	if err := call(e, "CreateContainer", p.creates[1]); err != nil {
		t.Fatal(err)
	}
	e.Exited(p.creates[1].GetContainerId(), 0)
	if err := call(e, "CreateContainer", again(t, p.creates[1], "again")); err == nil {
		t.Error("an init container runs twice")
	}
}

// TestAnInstanceThatIsMadeAgainHasNotEnded: a later container waits for the new instance of the init container.
func TestAnInstanceThatIsMadeAgainHasNotEnded(t *testing.T) {
	p := several(t)
	p.policy.Containers[0].Kind, p.policy.Containers[0].Restart = policy.Init, policy.Always
	e := p.until(t, 0, true)
	e.Exited(p.creates[0].GetContainerId(), 1)
	if err := call(e, "CreateContainer", again(t, p.creates[0], "again")); err != nil {
		t.Fatal(err)
	}
	denial(t, "the next one", call(e, "CreateContainer", p.creates[1]),
		"[order] c1/container: expected that init container c0 has exited with 0 before, got this container first")
	e.Exited("again", 0)
	denial(t, "the next one after it", call(e, "CreateContainer", p.creates[1]), "")
}

// TestSecretsAndNamesOfAContainerThatIsBeingMade: they are needed before the request is handled.
func TestSecretsAndNamesOfAContainerThatIsBeingMade(t *testing.T) {
	p := one(t)
	c := &p.policy.Containers[0]
	c.Secrets = []policy.Secret{{Resource: "kbs:///a/b/c", File: "/run/s"}}
	c.Workload = policy.Workload{Calls: []string{policy.CallInfo}}
	id := p.creates[0].GetContainerId()
	e := p.until(t, 0, false)
	check := func(what, id string, want int) {
		t.Helper()
		if n := len(e.Secrets(id)); n != want || (e.Workload(id) != "") != (want > 0) || e.Output(id, "") != (want > 0) {
			t.Errorf("%s: %d secrets, asks as %q, output %v", what, n, e.Workload(id), e.Output(id, ""))
		}
	}
	check("before", id, 0)
	check("no id", "", 0)
	g, err := e.Check("/"+service+"CreateContainer", p.creates[0])
	if err != nil {
		t.Fatal(err)
	}
	check("being made", id, 1)
	check("another", "other", 0)
	called := false
	g = g.And(func() { called = true })
	g.Commit()
	if !called {
		t.Error("And's function was not called")
	}
	check("made", id, 1)
	if err := call(e, "StartContainer", &pb.StartContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	c.Allow.Logs = false
	if e.Output(id, "") || e.Output(id, id) || !e.Output(id, "exec") {
		t.Error("output with closed logs")
	}
	var none *Grant
	none.Apply()
	none.Commit()
	(&Grant{}).And(func() {}).Commit()
}

// TestUpdatesAreLimitsOnly: an update changes memory, CPU and processes and nothing else.
func TestUpdatesAreLimitsOnly(t *testing.T) {
	p := one(t)
	e := p.until(t, 0, true)
	id := p.creates[0].GetContainerId()
	for what, tc := range map[string]struct {
		r    *pb.LinuxResources
		want string
	}{
		"memory": {&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: 9}}, ""},
		"devices": {
			&pb.LinuxResources{Devices: []*pb.LinuxDeviceCgroup{{Allow: true}}},
			"[value] c0/resources.Devices: expected 0, got 1",
		},
		"block devices": {
			&pb.LinuxResources{BlockIO: &pb.LinuxBlockIO{}},
			"[value] c0/resources.BlockIO: expected false, got true",
		},
		"unified": {
			&pb.LinuxResources{Unified: map[string]string{"io.max": "1"}},
			"[value] c0/resources.Unified[io.max]: expected a limit of memory, cpu or pids, got it",
		},
	} {
		denial(t, what, call(e, "UpdateContainer", &pb.UpdateContainerRequest{ContainerId: id, Resources: tc.r}), tc.want)
	}
}

// TestTheLoopbackDeviceIsTheGuests: no address, route or neighbour of the host is about it.
func TestTheLoopbackDeviceIsTheGuests(t *testing.T) {
	p := one(t)
	p.policy.Pod.Network.Neighbours = true
	e := New(p.policy)
	iface := func(address string) error {
		return call(e, "UpdateInterface", &pb.UpdateInterfaceRequest{Interface: &types.Interface{
			Name: "eth0", IPAddresses: []*types.IPAddress{{Address: address, Mask: "8"}},
		}})
	}
	const noLoop = "expected an address that is not the loopback device's, got "
	denial(t, "an address", iface("10.0.0.1"), "")
	for _, a := range []string{"127.0.0.1", "::1", "x", ""} {
		denial(t, a, iface(a), "[value] interface.IPAddresses[0].address: "+noLoop+compare.Quote(a))
	}
	route := func(r *types.Route) error {
		return call(e, "UpdateRoutes", &pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: []*types.Route{r}}})
	}
	const none = ": expected no loopback address, got "
	denial(t, "a route around", route(&types.Route{Dest: "0.0.0.0/0", Gateway: "10.0.0.1", Source: "10.0.0.2"}), "")
	denial(t, "a default route by its zero bits", route(&types.Route{Dest: "127.0.0.0/0"}), "")
	denial(t, "a destination", route(&types.Route{Dest: "127.0.0.1"}), "[value] routes.Routes[0].dest"+none+`"127.0.0.1"`)
	denial(t, "half of it", route(&types.Route{Dest: "127.0.0.0/1"}), "[value] routes.Routes[0].dest"+none+`"127.0.0.0/1"`)
	denial(t, "a gateway", route(&types.Route{Gateway: "127.0.0.1"}), "[value] routes.Routes[0].gateway"+none+`"127.0.0.1"`)
	denial(t, "a source", route(&types.Route{Source: "::1"}), "[value] routes.Routes[0].source"+none+`"::1"`)
	neighbour := func(device, address string) error {
		return call(e, "AddARPNeighbors", &pb.AddARPNeighborsRequest{Neighbors: &pb.ARPNeighbors{
			ARPNeighbors: []*types.ARPNeighbor{{Device: device, ToIPAddress: &types.IPAddress{Address: address}}},
		}})
	}
	denial(t, "a neighbour", neighbour("eth0", "10.0.0.1"), "")
	denial(t, "a neighbour on lo", neighbour("lo", "10.0.0.1"),
		`[value] neighbors.ARPNeighbors[0].device: expected another device than the loopback, got "lo"`)
	denial(t, "a neighbour with a loopback address", neighbour("eth0", "127.0.0.1"),
		"[value] neighbors.ARPNeighbors[0].toIPAddress"+none+`"127.0.0.1"`)
	p.policy.Pod.Network.Interfaces[0].Addresses = []string{"10.0.0.2/8"}
	denial(t, "another address", iface("10.0.0.1"), `[value] interface.IPAddresses: expected no "10.0.0.1/8", got it; `+
		`allow with: pod.network.interfaces[eth0].addresses with "10.0.0.1/8"`)
}

// TestFieldsAreBoundByRequestsThatWereHandled: the sandbox, a container and an exec may each be the first to tell one.
func TestFieldsAreBoundByRequestsThatWereHandled(t *testing.T) {
	p := one(t)
	field := policy.Env{Name: "NODE", Value: policy.Value{Field: policy.FieldNodeName}, Optional: true}
	p.policy.Containers[0].Process.Env = append(p.policy.Containers[0].Process.Env, field)
	e := p.until(t, 0, true)
	exec := func(node string) error {
		m := proto.CloneOf(p.execs[0])
		m.Process.Env = append(m.Process.Env, "NODE="+node)
		return call(e, "ExecProcess", m)
	}
	denial(t, "first", exec("a"), "")
	denial(t, "another", exec("b"), `[value] c0/process.Env[NODE]: expected the pod's nodeName, which is "a", got another `+
		"text of 1 bytes; allow with: containers[c0].process.env[NODE] with this text")
	m := proto.CloneOf(p.execs[0])
	m.ExecId = "a/b"
	denial(t, "a path as id", call(e, "ExecProcess", m),
		`[id] exec_id: expected 1 to 128 letters, digits and _.-, the first a letter or digit, got "a/b"`)
	e.Exited(p.creates[0].GetContainerId(), 0)
	denial(t, "after the end", exec("a"), "[order] c0/container_id: expected a container that runs, got one that does not")
	p.policy.Pod.Hostname = policy.Value{Type: policy.TypeName}
	m2 := proto.CloneOf(p.sandbox)
	m2.SandboxId = "a b"
	denial(t, "a sandbox with a blank", call(New(p.policy), "CreateSandbox", m2),
		`[id] sandbox_id: expected 1 to 128 letters, digits and _.-, the first a letter or digit, got "a b"`)
}

// TestPortsOfPortForward: all ports that there are.
func TestPortsOfPortForward(t *testing.T) {
	p := one(t)
	p.policy.Pod.PortForward = []uint16{65535}
	e := New(p.policy)
	denial(t, "the last port", e.Forward(65535), "")
	denial(t, "port 0", e.Forward(0), "[capability] port: expected a port of pod.portForward, got 0; "+
		"allow with: pod.portForward with 0")
	denial(t, "past the last", e.Forward(65536), "[capability] port: expected a port of pod.portForward, got 65536; "+
		"allow with: pod.portForward with 65536")
}

// TestProcessesOfAContainerThatIsGone: whose processes a container sees is one that lives.
func TestProcessesOfAContainerThatIsGone(t *testing.T) {
	p := several(t)
	p.policy.Containers[0].Restart, p.policy.Containers[1].Linux.PIDs = policy.Always, "c0"
	id := p.creates[0].GetContainerId()
	m := proto.CloneOf(p.creates[1])
	m.SandboxPidns, m.PidContainer = false, id
	const gone = `[value] c1/pid_container: expected "(no container c0 lives)", got `
	denial(t, "alive", call(p.until(t, 0, true), "CreateContainer", m), "")
	e := p.until(t, 0, true)
	e.Exited(id, 0)
	denial(t, "ended", call(e, "CreateContainer", m), gone+compare.Quote(id))
	e = p.until(t, 0, true)
	if err := call(e, "RemoveContainer", &pb.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	denial(t, "removed", call(e, "CreateContainer", m), gone+compare.Quote(id))
	p.policy.Containers[0].Secrets = []policy.Secret{{Resource: "kbs:///a/b/c", File: "/run/s"}}
	p.policy.Containers[0].Workload = policy.Workload{Calls: []string{policy.CallInfo}}
	e = p.until(t, 0, true)
	if err := call(e, "CreateContainer", m); err != nil {
		t.Fatal(err)
	}
	if len(e.Secrets(id)) != 1 || e.Workload(id) != "c0" {
		t.Error("a container has no secrets any more when another one is made")
	}
}

// TestTheSandboxTellsItsName: a variable with the pod's host name has the one that the sandbox was told.
func TestTheSandboxTellsItsName(t *testing.T) {
	p := one(t)
	c := &p.policy.Containers[0]
	c.Process.Env = append(c.Process.Env, policy.Env{
		Name: "NODE", Value: policy.Value{Field: policy.FieldHostname}, Optional: true,
	})
	m := proto.CloneOf(p.creates[0])
	m.OCI.Process.Env = append(m.OCI.Process.Env, "NODE=other")
	denial(t, "another name", call(p.until(t, 0, false), "CreateContainer", m), `[value] c0/OCI.Process.Env[NODE]: expected `+
		"the pod's hostname, which is "+compare.Quote(p.sandbox.GetHostname())+", got another text of 5 bytes; "+
		"allow with: containers[c0].process.env[NODE] with this text")
	e := p.until(t, 0, true)
	p.policy.Pod.Stats, c.Allow.Logs = false, true
	message := &pb.GetDiagnosticDataRequest{ContainerId: p.creates[0].GetContainerId()}
	denial(t, "a termination message is output", call(e, "GetDiagnosticData", message), "")
}
