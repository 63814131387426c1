// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/copies"
)

const (
	service = "grpc.AgentService/"
	health  = "grpc.Health/"
)

// rules has an entry for every method of the protocol.
var rules = map[string]rule{
	health + "Check":              always,
	health + "Version":            always,
	service + "GetGuestDetails":   always, // version and features of the agent
	service + "DestroySandbox":    always, // the host ends the VM anyway
	service + "CreateSandbox":     createSandbox,
	service + "CreateContainer":   createContainer,
	service + "StartContainer":    startContainer,
	service + "RemoveContainer":   removeContainer,
	service + "ExecProcess":       execProcess,
	service + "SignalProcess":     ofContainer, // the host ends the VM anyway
	service + "WaitProcess":       ofContainer,
	service + "UpdateContainer":   updateContainer,
	service + "TtyWinResize":      ofContainer,
	service + "WriteStdin":        input,
	service + "CloseStdin":        input,
	service + "ReadStdout":        output,
	service + "ReadStderr":        output,
	service + "GetDiagnosticData": diagnostics,
	service + "UpdateInterface":   updateInterface,
	service + "UpdateRoutes":      updateRoutes,
	service + "AddARPNeighbors":   addNeighbours,
	service + "CopyFile":          copyFile,

	service + "StatsContainer": statistics,
	service + "GetMetrics":     statistics,
	service + "GetOOMEvent":    statistics,
	service + "GetVolumeStats": statistics,
	service + "ListInterfaces": statistics,
	service + "ListRoutes":     statistics,

	service + "PauseContainer":                 debugging,
	service + "ResumeContainer":                debugging,
	service + "UpdateEphemeralMounts":          never,
	service + "RemoveStaleVirtiofsShareMounts": never,
	service + "GetIPTables":                    never,
	service + "SetIPTables":                    never,
	service + "MemAgentMemcgSet":               never,
	service + "MemAgentCompactSet":             never,
	service + "OnlineCPUMem":                   never,
	service + "ReseedRandomDev":                never,
	service + "MemHotplugByProbe":              never,
	service + "SetGuestDateTime":               never,
	service + "AddSwap":                        never,
	service + "AddSwapPath":                    never,
	service + "ResizeVolume":                   never,
	service + "SetPolicy":                      never,
}

// answersClosed are the methods that a guest with a closed policy answers.
var answersClosed = map[string]bool{
	health + "Check": true, health + "Version": true,
	service + "GetGuestDetails": true, service + "DestroySandbox": true,
}

// answersBroken are the methods that a guest answers after a removal that has failed: those that end the pod, and those
// that report its end.
var answersBroken = map[string]bool{
	health + "Check": true, health + "Version": true,
	service + "GetGuestDetails": true, service + "DestroySandbox": true,
	service + "RemoveContainer": true, service + "SignalProcess": true, service + "WaitProcess": true,
	service + "ReadStdout": true, service + "ReadStderr": true, service + "GetDiagnosticData": true,
}

func always(*Engine, proto.Message) (*Grant, *compare.Denial) { return &Grant{}, nil }

func never(_ *Engine, m proto.Message) (*Grant, *compare.Denial) {
	return nil, &compare.Denial{
		Code: compare.Method, Field: string(m.ProtoReflect().Descriptor().Name()),
		Want: "no such call: a policy cannot allow it",
		Got:  "one",
	}
}

func statistics(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	return e.open(e.policy.Pod.Stats, "stats", m)
}

func debugging(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	return e.open(e.policy.Pod.Debug, "debug", m)
}

// open admits a call of a capability of the pod.
func (e *Engine) open(opened bool, name string, m proto.Message) (*Grant, *compare.Denial) {
	if opened {
		return &Grant{}, nil
	}
	return nil, &compare.Denial{
		Code: compare.Capability, Field: string(m.ProtoReflect().Descriptor().Name()),
		Want: "none: the capability " + name + " is closed", Got: "one", Fix: "pod." + name + " = true",
	}
}

func ofContainer(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	_, d := e.instance(containerOf(m))
	return &Grant{}, d
}

// input admits writing to a process: to the first one with the capability, to an exec because it was allowed.
func input(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	return e.stream(m, "stdin", func(c *policy.Capabilities) bool { return c.Stdin })
}

// diagnostics admits reading a container's termination message, which is output, and the log of decisions.
func diagnostics(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	if r, ok := m.(*pb.GetDiagnosticDataRequest); ok && r.GetLogType() == contract.DecisionLog {
		return statistics(e, m)
	}
	return output(e, m)
}

// output admits reading what a process has written, likewise.
func output(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	return e.stream(m, "logs", func(c *policy.Capabilities) bool { return c.Logs })
}

func (e *Engine) stream(m proto.Message, name string, opened func(*policy.Capabilities) bool) (*Grant,
	*compare.Denial,
) {
	c, d := e.instance(containerOf(m))
	if d != nil {
		return nil, d
	}
	if r, ok := m.(interface{ GetExecId() string }); ok && r.GetExecId() != "" && r.GetExecId() != containerOf(m) {
		if c.execs[r.GetExecId()] == nil {
			return nil, &compare.Denial{
				Code: compare.ID, Container: c.of.Name, Field: "exec_id", Want: "the id of an exec that was begun",
				Got: compare.Quote(r.GetExecId()),
			}
		}
		return &Grant{}, nil
	}
	if opened(&c.of.Allow) {
		return &Grant{}, nil
	}
	return nil, &compare.Denial{
		Code: compare.Capability, Container: c.of.Name, Field: string(m.ProtoReflect().Descriptor().Name()),
		Want: "none: the capability " + name + " is closed", Got: "one",
		Fix: "containers[" + c.of.Name + "].allow." + name + " = true",
	}
}

func updateContainer(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.UpdateContainerRequest)
	if !ok {
		return nil, mistyped(m)
	}
	c, wrong := e.instance(req.GetContainerId())
	if wrong != nil {
		return nil, wrong
	}
	d := &compare.Diffs{Root: "containers[" + c.of.Name + "]"}
	compare.Fixed(d, "resources.Devices", 0, len(req.GetResources().GetDevices()))
	d.Limits("resources", req.GetResources())
	if d.First != nil {
		d.First.Container = c.of.Name
		return nil, d.First
	}
	return &Grant{}, nil
}

func updateInterface(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.UpdateInterfaceRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d, got := &compare.Diffs{Root: "pod.network"}, req.GetInterface()
	list := e.policy.Pod.Network.Interfaces
	i := slices.IndexFunc(list, func(w policy.Interface) bool { return w.Name == got.GetName() })
	if i < 0 {
		d.Add("interface.name", "an interface of the policy", compare.Quote(got.GetName()),
			"interfaces with "+compare.Quote(got.GetName()))
		return nil, d.First
	}
	var addresses []string
	for j, a := range got.GetIPAddresses() {
		at := compare.Index("interface.IPAddresses", j)
		if address, err := netip.ParseAddr(a.GetAddress()); err != nil || loopback(address) {
			d.Add(at+".address", "an address that is not the loopback device's", compare.Quote(a.GetAddress()), "")
		}
		addresses = append(addresses, a.GetAddress()+"/"+a.GetMask())
	}
	if len(list[i].Addresses) > 0 {
		d.Set("interface.IPAddresses", compare.Key("interfaces", list[i].Name)+".addresses", list[i].Addresses, addresses)
	}
	if d.First != nil {
		return nil, d.First
	}
	return &Grant{}, nil
}

func loopback(a netip.Addr) bool { return a.Unmap().IsLoopback() }

func updateRoutes(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.UpdateRoutesRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d := &compare.Diffs{Root: "pod.network"}
	if !e.policy.Pod.Network.Routes {
		d.Add("routes", "none", "some", "routes = true")
	}
	for i, r := range req.GetRoutes().GetRoutes() {
		at := compare.Index("routes.Routes", i)
		if r.GetDevice() == "lo" {
			d.Add(at+".device", "another device than the loopback", compare.Quote(r.GetDevice()), "")
		}
		for _, f := range []struct{ name, text string }{
			{".dest", r.GetDest()}, {".gateway", r.GetGateway()}, {".source", r.GetSource()},
		} {
			if overlapsLoopback(f.text) {
				d.Add(at+f.name, "no loopback address", compare.Quote(f.text), "")
			}
		}
	}
	if d.First != nil {
		return nil, d.First
	}
	return &Grant{}, nil
}

// overlapsLoopback says whether an address or network is one of the loopback device, or lies within its network. The
// default route, which lies around it, does not count.
func overlapsLoopback(s string) bool {
	if p, err := netip.ParsePrefix(s); err == nil {
		return loopback(p.Addr()) && p.Bits() > 0
	}
	a, err := netip.ParseAddr(s)
	return err == nil && loopback(a)
}

func addNeighbours(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.AddARPNeighborsRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d := &compare.Diffs{Root: "pod.network"}
	if !e.policy.Pod.Network.Neighbours {
		d.Add("neighbors", "none", "some", "neighbours = true")
	}
	for i, n := range req.GetNeighbors().GetARPNeighbors() {
		neighbour(d, compare.Index("neighbors.ARPNeighbors", i), n)
	}
	if d.First != nil {
		return nil, d.First
	}
	return &Grant{}, nil
}

func neighbour(d *compare.Diffs, at string, n *types.ARPNeighbor) {
	if n.GetDevice() == "lo" {
		d.Add(at+".device", "another device than the loopback", compare.Quote(n.GetDevice()), "")
	}
	if overlapsLoopback(n.GetToIPAddress().GetAddress()) {
		d.Add(at+".toIPAddress", "no loopback address", compare.Quote(n.GetToIPAddress().GetAddress()), "")
	}
}

func copyFile(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.CopyFileRequest)
	if !ok {
		return nil, mistyped(m)
	}
	commit, d := e.copies.Check(req, e.holders)
	if d != nil {
		return nil, d
	}
	return &Grant{commit: commit}, nil
}

// holders yields the containers of the guest that the policy declares. Those for debugging may see anything that is
// copied.
func (e *Engine) holders(yield func(copies.Holder) bool) {
	for id, c := range e.lives {
		if !c.removed && e.declared(c.of.Name) && !yield(copies.Holder{ID: id, Of: c.of, Places: e.box.volumes}) {
			return
		}
	}
}
