// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// methods are those of the protocol, with a request of each.
func methods() map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_coco_agent_agent_proto, pb.File_coco_agent_health_proto,
	} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out[string(s.FullName())+"/"+string(m.Name())] = message(m.Input())
			}
		}
	}
	return out
}

func message(d protoreflect.MessageDescriptor) proto.Message {
	for _, m := range []proto.Message{
		&pb.CreateSandboxRequest{}, &pb.CreateContainerRequest{}, &pb.ExecProcessRequest{}, &pb.StartContainerRequest{},
		&pb.CopyFileRequest{}, &pb.UpdateInterfaceRequest{}, &pb.UpdateRoutesRequest{}, &pb.AddARPNeighborsRequest{},
		&pb.UpdateContainerRequest{}, &pb.RemoveContainerRequest{},
	} {
		if m.ProtoReflect().Descriptor().FullName() == d.FullName() {
			return m
		}
	}
	return &pb.CheckRequest{}
}

func TestEveryMethodHasARule(t *testing.T) {
	all := methods()
	if len(all) < 44 {
		t.Fatalf("the protocol has %d methods", len(all))
	}
	for name := range all {
		if rules[name] == nil {
			t.Errorf("method %s has no rule", name)
		}
	}
	for name := range rules {
		if all[name] == nil {
			t.Errorf("the rule for %s is of no method", name)
		}
	}
}

// After a removal that has failed, a guest begins nothing new; what ends its pod is answered.
func TestABrokenGuestBeginsNothing(t *testing.T) {
	hostname := "a"
	e := New(&policy.Policy{APIVersion: policy.APIVersion, Pod: policy.Pod{
		Hostname: policy.Value{Is: &hostname}, Stats: true, Debug: true, Copy: true,
	}})
	e.Broken()
	for name, m := range methods() {
		_, err := e.Check("/"+name, m)
		if told := err != nil && strings.Contains(err.Error(), "could not be removed"); told == answersBroken[name] {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name := range answersBroken {
		if rules[name] == nil {
			t.Errorf("there is no method %s", name)
		}
	}
}

// A policy that pins nothing allows nothing: every method but those of a closed guest and the sandbox is denied.
func TestTheDefaultIsToDeny(t *testing.T) {
	hostname := "a"
	least := &policy.Policy{APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &hostname}}}
	for name, m := range methods() {
		for what, e := range map[string]*Engine{"closed": New(nil), "least": New(least)} {
			_, err := e.Check("/"+name, m)
			free := answersClosed[name] || what == "least" && name == service+"RemoveContainer"
			if errdefs.IsPermissionDenied(err) == free {
				t.Errorf("%s policy, %s: %v", what, name, err)
			}
		}
	}
	if _, err := New(least).Check("/grpc.AgentService/New", &pb.CheckRequest{}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("an unknown method: %v", err)
	}
	if New(nil).Forward(80) == nil || New(least).Forward(80) == nil || New(nil).Streams() == nil || New(nil).Output("c",
		"") {
		t.Error("a closed guest forwards, streams or shows output")
	}
	if New(nil).Resolver() == nil || New(least).Resolver() == nil {
		t.Error("a closed guest asks the host for names")
	}
}

func code(err error) compare.Code {
	var d *compare.Denial
	if !errors.As(err, &d) {
		return ""
	}
	return d.Code
}

// one returns a pod with one container, named c0.
func one(t *testing.T) *pod {
	t.Helper()
	for seed := uint64(0); ; seed++ {
		if p := newPod(t, seed); len(p.creates) == 1 && len(p.policy.Containers[0].Mounts) < 6 {
			return p
		}
	}
}

// again is a request for another instance of a container.
func again(t *testing.T, m *pb.CreateContainerRequest, id string) *pb.CreateContainerRequest {
	t.Helper()
	out := proto.CloneOf(m)
	old := m.GetContainerId()
	replace := func(s string) string { return strings.ReplaceAll(s, old, id) }
	out.ContainerId, out.ExecId = id, id
	out.OCI.Root.Path, out.OCI.Linux.CgroupsPath = replace(out.OCI.Root.Path), replace(out.OCI.Linux.CgroupsPath)
	for _, mount := range out.OCI.Mounts {
		mount.Source = replace(mount.Source)
	}
	for _, s := range out.Storages {
		s.MountPoint = replace(s.MountPoint)
		for _, list := range [][]string{s.Options, s.DriverOptions} {
			for i := range list {
				list[i] = replace(list[i])
			}
		}
	}
	return out
}

func TestOrderOfRequests(t *testing.T) {
	p := one(t)
	e, c := New(p.policy), p.creates[0]
	id := c.GetContainerId()
	check := func(what string, err error, want compare.Code) {
		t.Helper()
		if code(err) != want || (err == nil) != (want == "") {
			t.Errorf("%s: %v, want code %q", what, err, want)
		}
	}
	start := &pb.StartContainerRequest{ContainerId: id}
	check("a container before the sandbox", call(e, "CreateContainer", c), compare.Order)
	check("sandbox", call(e, "CreateSandbox", p.sandbox), "")
	check("a second sandbox", call(e, "CreateSandbox", p.sandbox), compare.Order)
	check("start of nothing", call(e, "StartContainer", start), compare.ID)
	if _, err := e.Check("/"+service+"CreateContainer", c); err != nil {
		t.Error(err) // not committed: it failed in the guest
	}
	check("create", call(e, "CreateContainer", c), "")
	check("create again", call(e, "CreateContainer", c), compare.ID)
	check("a second instance", call(e, "CreateContainer", again(t, c, "other")), compare.Order)
	check("exec before the start", call(e, "ExecProcess", p.execs[0]), compare.Order)
	check("start", call(e, "StartContainer", start), "")
	check("start again", call(e, "StartContainer", start), compare.Order)
	check("exec", call(e, "ExecProcess", p.execs[0]), "")
	e.Exited(id, 1)
	check("exec after the exit", call(e, "ExecProcess", p.execs[0]), compare.Order)
	check("remove", call(e, "RemoveContainer", &pb.RemoveContainerRequest{ContainerId: id}), "")
	check("remove again", call(e, "RemoveContainer", &pb.RemoveContainerRequest{ContainerId: id}), "")
	check("the id again", call(e, "CreateContainer", c), compare.ID)
	check("another instance after the exit", call(e, "CreateContainer", again(t, c, "other")), "")
	p.policy.Containers[0].Restart = policy.OnFailure
	e.Exited("other", 0)
	check("a third after success", call(e, "CreateContainer", again(t, c, "third")), compare.Order)
	bad := again(t, c, "bad/id")
	check("an id with a slash", call(e, "CreateContainer", bad), compare.ID)
}

func TestInitContainersComeFirst(t *testing.T) {
	var p *pod
	for seed := uint64(0); p == nil || len(p.creates) != 3; seed++ {
		p = newPod(t, seed)
	}
	p.policy.Containers[0].Kind, p.policy.Containers[1].Kind = policy.Init, policy.Sidecar
	e := New(p.policy)
	if err := call(e, "CreateSandbox", p.sandbox); err != nil {
		t.Fatal(err)
	}
	create := func(i int) error { return call(e, "CreateContainer", p.creates[i]) }
	start := func(i int) error {
		return call(e, "StartContainer", &pb.StartContainerRequest{ContainerId: p.creates[i].ContainerId})
	}
	steps := []struct {
		what string
		err  error
		want compare.Code
	}{
		{"the app first", create(2), compare.Order},
		{"the sidecar first", create(1), compare.Order},
		{"the init container", create(0), ""},
		{"start it", start(0), ""},
		{"the sidecar beside it", create(1), compare.Order},
	}
	e.Exited(p.creates[0].ContainerId, 0)
	steps = append(steps, []struct {
		what string
		err  error
		want compare.Code
	}{
		{"the init container again", call(e, "CreateContainer", again(t, p.creates[0], "again")), compare.Order},
		{"the sidecar", create(1), ""},
		{"the app before its start", create(2), compare.Order},
		{"start the sidecar", start(1), ""},
		{"the app", create(2), ""},
	}...)
	for _, s := range steps {
		if code(s.err) != s.want || (s.err == nil) != (s.want == "") {
			t.Errorf("%s: %v, want code %q", s.what, s.err, s.want)
		}
	}
}

// TestDenialsKeepSecrets: neither a variable's text nor the words of an exec are in the denial.
func TestDenialsKeepSecrets(t *testing.T) {
	const canary = "canary-5f3e"
	p := one(t)
	for _, spoil := range []func(*pb.CreateContainerRequest){
		func(m *pb.CreateContainerRequest) { m.OCI.Process.Env[2] = "NAME=" + canary },
		func(m *pb.CreateContainerRequest) { m.OCI.Process.Env = append(m.OCI.Process.Env, "MORE="+canary) },
		func(m *pb.CreateContainerRequest) { m.OCI.Process.Env = append(m.OCI.Process.Env, canary) },
		func(m *pb.CreateContainerRequest) { m.OCI.Annotations["k"] = canary },
	} {
		m := proto.CloneOf(p.creates[0])
		spoil(m)
		if err := call(p.until(t, 0, false), "CreateContainer", m); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
	x := proto.CloneOf(p.execs[0])
	x.Process.Args = []string{"sh", "-c", canary}
	if err := call(p.until(t, 0, true), "ExecProcess", x); code(err) != compare.Value || strings.Contains(err.Error(),
		canary) {
		t.Errorf("%v", err)
	}
}

func TestADenialIsOneShortLine(t *testing.T) {
	long := strings.Repeat("ü\n", 3000)
	d := &compare.Denial{
		Code: compare.Value, Container: "c", Field: "f", Want: compare.Quote(long), Got: compare.QuoteAll([]string{
			long,
			long,
		}), Fix: long,
	}
	if s := (&compare.Denial{Code: compare.Value, Field: "f", Want: "a", Got: "b", Fix: strings.Repeat("ü",
		3000)}).Error(); len(s) > compare.MaxDenial {
		t.Errorf("%d bytes", len(s))
	}
	if s := d.Error(); len(s) > compare.MaxDenial || !strings.HasPrefix(s, "denied [value] c/f: expected ") {
		t.Errorf("%d bytes: %s", len(s), s)
	}
	got := (&compare.Denial{Code: compare.Value, Container: "web", Field: "a", Want: "1", Got: "2", Fix: "b = 2"}).Error()
	if want := "denied [value] web/a: expected 1, got 2; allow with: b = 2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestServiceVariablesAreDropped(t *testing.T) {
	p := one(t)
	m := proto.CloneOf(p.creates[0])
	before := len(m.OCI.Process.Env)
	m.OCI.Process.Env = append(m.OCI.Process.Env, "WEB_SERVICE_HOST=10.0.0.1", "WEB_PORT_80_TCP_ADDR=10.0.0.1",
		"WEB_PORT=tcp://10.0.0.1:80")
	e := p.until(t, 0, false)
	g, err := e.Check("/"+service+"CreateContainer", m)
	if err != nil {
		t.Fatal(err)
	}
	if g.Apply(); len(m.OCI.Process.Env) != before {
		t.Errorf("the process gets %q", m.OCI.Process.Env)
	}
	for _, name := range []string{
		"A_SERVICE_HOST", "A_SERVICE_PORT", "A_SERVICE_PORT_HTTP", "A_PORT", "A_PORT_80_TCP",
		"A_PORT_80_UDP_PORT", "A_PORT_B_PORT_80_TCP_PROTO",
	} {
		if !compare.IsService(name) {
			t.Errorf("%s is no service's", name)
		}
	}
	for _, name := range []string{
		"", "PATH", "_PORT", "PORT", "a_PORT", "A_PORT_80", "A_PORT_80_ICMP",
		"A_PORT_80_TCP_X", "LD_PRELOAD", "A_PORT_0_TCP",
	} {
		if compare.IsService(name) {
			t.Errorf("%s is a service's", name)
		}
	}
}

// TestFieldsAreTheSameEverywhere: a value that only the host knows is one value in the whole pod.
func TestFieldsAreTheSameEverywhere(t *testing.T) {
	var p *pod
	for seed := uint64(0); p == nil || len(p.creates) < 2; seed++ {
		p = newPod(t, seed)
	}
	e := p.until(t, 1, false)
	m := proto.CloneOf(p.creates[1])
	for i, v := range m.OCI.Process.Env {
		if strings.HasPrefix(v, "POD_IP=") {
			m.OCI.Process.Env[i] = "POD_IP=10.0.0.8"
		}
	}
	if err := call(e, "CreateContainer", m); code(err) != compare.Value || !strings.Contains(err.Error(),
		`podIP, which is "10.0.0.7"`) {
		t.Errorf("%v", err)
	}
}

// TestVolumesKeepTheirPlace: the first container decides where a volume is, and no other volume gets that place.
func TestVolumesKeepTheirPlace(t *testing.T) {
	d := &compare.Diffs{Volumes: map[string]string{}}
	conf, more := &policy.Volume{Name: "conf", Kind: policy.VolumeCopy}, &policy.Volume{
		Name: "more",
		Kind: policy.VolumeCopy,
	}
	at := contract.FilesDir + "/sandbox-1"
	d.Bind("f", conf, at)
	d.Bind("f", conf, at)
	if d.N != 0 {
		t.Error(d.First)
	}
	for i, bind := range []func(){
		func() { d.Bind("f", conf, at+"2") },
		func() { d.Bind("f", more, at) },
		func() { d.Bind("f", more, contract.FilesDir+"/other") },
		func() { d.Bind("f", more, contract.FilesDir+"/sandbox-1/x") },
		func() { d.Bind("f", more, contract.MemoryDir+"/sandbox-2") },
	} {
		if bind(); d.N != i+1 {
			t.Errorf("case %d: %d denials", i, d.N)
		}
	}
}

func TestNetwork(t *testing.T) {
	p := one(t)
	p.policy.Pod.Network.Interfaces[0].Addresses = []string{"10.0.0.2/24"}
	e := New(p.policy)
	iface := func(name, address, mask string) error {
		return call(e, "UpdateInterface", &pb.UpdateInterfaceRequest{Interface: &types.Interface{
			Name: name, IPAddresses: []*types.IPAddress{{Address: address, Mask: mask}},
		}})
	}
	routes := func(dest, device string) error {
		return call(e, "UpdateRoutes", &pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: []*types.Route{{
			Dest:   dest,
			Device: device,
		}}}})
	}
	for _, tc := range []struct {
		what string
		err  error
		want compare.Code
	}{
		{"the interface", iface("eth0", "10.0.0.2", "24"), ""},
		{"another one", iface("eth1", "10.0.0.2", "24"), compare.Value},
		{"another address", iface("eth0", "10.0.0.3", "24"), compare.Value},
		{"a loopback address", iface("eth0", "127.0.0.1", "8"), compare.Value},
		{"a mapped one", iface("eth0", "::ffff:127.0.0.1", "128"), compare.Value},
		{"no address", iface("eth0", "x", "8"), compare.Value},
		{"a route", routes("10.0.0.0/8", "eth0"), ""},
		{"the default route", routes("", "eth0"), ""},
		{"a route to the loopback", routes("127.0.0.0/8", "eth0"), compare.Value},
		{"a route over it", routes("10.0.0.0/8", "lo"), compare.Value},
		{"neighbours", call(e, "AddARPNeighbors", &pb.AddARPNeighborsRequest{}), compare.Value},
	} {
		if code(tc.err) != tc.want || (tc.err == nil) != (tc.want == "") {
			t.Errorf("%s: %v, want code %q", tc.what, tc.err, tc.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	p := one(t)
	id := p.creates[0].GetContainerId()
	c := &p.policy.Containers[0]
	c.Allow.Logs = false
	withInput := proto.CloneOf(p.creates[0])
	withInput.StdinPort = 9
	if err := call(p.until(t, 0, false), "CreateContainer", withInput); code(err) != compare.Value {
		t.Errorf("a stream for stdin without the capability: %v", err)
	}
	e := p.until(t, 0, true)
	if err := call(e, "ExecProcess", p.execs[0]); err != nil {
		t.Fatal(err)
	}
	exec := p.execs[0].GetExecId()
	read := func(exec string) error {
		return call(e, "ReadStdout", &pb.ReadStreamRequest{ContainerId: id, ExecId: exec})
	}
	write := func(exec string) error {
		return call(e, "WriteStdin", &pb.WriteStreamRequest{ContainerId: id, ExecId: exec})
	}
	if code(read("")) != compare.Capability || code(read(id)) != compare.Capability ||
		code(write("")) != compare.Capability || e.Output(id, "") {
		t.Error("closed streams are open")
	}
	if read(exec) != nil || write(exec) != nil || !e.Output(id, exec) || code(read("other")) != compare.ID {
		t.Error("the streams of an exec are closed, or of any")
	}
	c.Allow.Logs, c.Allow.Stdin = true, true
	if read("") != nil || write("") != nil || !e.Output(id, "") {
		t.Error("open streams are closed")
	}
	p.policy.Pod.PortForward = []uint16{80}
	if e.Forward(80) != nil || code(e.Forward(81)) != compare.Capability ||
		code(e.Forward(80+1<<16)) != compare.Capability {
		t.Error("port-forward")
	}
	// Validate refuses it, and so does the engine.
	p.policy.Pod.WorkloadPort, p.policy.Pod.PortForward = 8006, []uint16{80, 8006}
	if e.Forward(80) != nil || code(e.Forward(8006)) != compare.Capability {
		t.Error("the port of the workload API is forwarded")
	}
	if name := e.Workload(id); name != "" {
		t.Errorf("a container may ask as %s", name)
	}
	if names, port := New(nil).Workloads(); len(names) != 0 || port != 0 {
		t.Errorf("without a policy %q may ask on port %d", names, port)
	}
	c.Workload = policy.Workload{Calls: []string{policy.CallInfo}}
	if name, other := e.Workload(id), e.Workload("other"); name != c.Name || other != "" {
		t.Errorf("container %s may ask as %q, an unknown one as %q", c.Name, name, other)
	}
	if names, port := e.Workloads(); !slices.Equal(names, []string{c.Name}) || port != 8006 {
		t.Errorf("%q may ask on port %d", names, port)
	}
	for _, dns := range []policy.DNS{
		{FromHost: true}, {Lines: []string{"search x", contract.ResolverLine}}, {Lines: []string{"nameserver 10.0.0.1"}},
	} {
		p.policy.Pod.DNS = dns
		if err, open := e.Resolver(), dns.FromHost || len(dns.Lines) == 2; open != (err == nil) ||
			!open && code(err) != compare.Capability {
			t.Errorf("names with %+v: %v", dns, err)
		}
	}
	p.policy.Pod.DNS = policy.DNS{}
	c.Allow.Exec = policy.Exec{}
	if err := call(e, "ExecProcess", p.execs[0]); code(err) != compare.Capability {
		t.Errorf("exec without the capability: %v", err)
	}
	if err := call(e, "StatsContainer", &pb.StatsContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	log := &pb.GetDiagnosticDataRequest{LogType: contract.DecisionLog}
	if err := call(e, "GetDiagnosticData", log); err != nil {
		t.Error(err)
	}
	p.policy.Pod.Stats = false
	if err := call(e, "GetDiagnosticData", log); code(err) != compare.Capability {
		t.Errorf("the log of decisions: %v", err)
	}
	if err := call(e, "StatsContainer", &pb.StatsContainerRequest{ContainerId: id}); code(err) != compare.Capability {
		t.Errorf("statistics: %v", err)
	}
}

// TestLimitsAndPlacesByRequest: what the changes of single fields do not reach.
func TestLimitsAndPlacesByRequest(t *testing.T) {
	p := one(t)
	m := proto.CloneOf(p.creates[0])
	m.OCI.Process.Rlimits = append(m.OCI.Process.Rlimits, &pb.POSIXRlimit{Type: "RLIMIT_CORE", Soft: 1, Hard: 1})
	if err := call(p.until(t, 0, false), "CreateContainer", m); code(err) != compare.Value {
		t.Errorf("a limit that the policy does not name: %v", err)
	}
	p.policy.Containers[0].Process.Rlimits.FromHost = true
	if err := call(p.until(t, 0, false), "CreateContainer", m); err != nil {
		t.Error(err)
	}
	m.OCI.Process.Rlimits[len(m.OCI.Process.Rlimits)-1].Type = "limit"
	if err := call(p.until(t, 0, false), "CreateContainer", m); code(err) != compare.Value {
		t.Errorf("a limit without a limit's name: %v", err)
	}
}
