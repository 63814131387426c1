// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
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
	service + "GetDiagnosticData": output, // the termination message
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

func always(*Engine, proto.Message) (*Grant, *Denial) { return &Grant{}, nil }

func never(_ *Engine, m proto.Message) (*Grant, *Denial) {
	return nil, &Denial{
		Code: Method, Field: string(m.ProtoReflect().Descriptor().Name()), Want: "no such call: a policy cannot allow it",
		Got: "one",
	}
}

func statistics(e *Engine, m proto.Message) (*Grant, *Denial) {
	return e.open(e.policy.Pod.Stats, "stats", m)
}

func debugging(e *Engine, m proto.Message) (*Grant, *Denial) {
	return e.open(e.policy.Pod.Debug, "debug", m)
}

// open admits a call of a capability of the pod.
func (e *Engine) open(opened bool, name string, m proto.Message) (*Grant, *Denial) {
	if opened {
		return &Grant{}, nil
	}
	return nil, &Denial{
		Code: Capability, Field: string(m.ProtoReflect().Descriptor().Name()),
		Want: "none: the capability " + name + " is closed", Got: "one", Fix: "pod." + name + " = true",
	}
}

func ofContainer(e *Engine, m proto.Message) (*Grant, *Denial) {
	_, d := e.instance(containerOf(m))
	return &Grant{}, d
}

// input admits writing to a process: to the first one with the capability, to an exec because it was allowed.
func input(e *Engine, m proto.Message) (*Grant, *Denial) {
	return e.stream(m, "stdin", func(c *policy.Capabilities) bool { return c.Stdin })
}

// output admits reading what a process has written, likewise.
func output(e *Engine, m proto.Message) (*Grant, *Denial) {
	return e.stream(m, "logs", func(c *policy.Capabilities) bool { return c.Logs })
}

func (e *Engine) stream(m proto.Message, name string, opened func(*policy.Capabilities) bool) (*Grant, *Denial) {
	c, d := e.instance(containerOf(m))
	if d != nil {
		return nil, d
	}
	if r, ok := m.(interface{ GetExecId() string }); ok && r.GetExecId() != "" && r.GetExecId() != containerOf(m) {
		if c.execs[r.GetExecId()] == nil {
			return nil, &Denial{
				Code: ID, Container: c.of.Name, Field: "exec_id", Want: "the id of an exec that was begun",
				Got: quote(r.GetExecId()),
			}
		}
		return &Grant{}, nil
	}
	if opened(&c.of.Allow) {
		return &Grant{}, nil
	}
	return nil, &Denial{
		Code: Capability, Container: c.of.Name, Field: string(m.ProtoReflect().Descriptor().Name()),
		Want: "none: the capability " + name + " is closed", Got: "one",
		Fix: "containers[" + c.of.Name + "].allow." + name + " = true",
	}
}

func updateContainer(e *Engine, m proto.Message) (*Grant, *Denial) {
	req, ok := m.(*pb.UpdateContainerRequest)
	if !ok {
		return nil, mistyped(m)
	}
	c, wrong := e.instance(req.GetContainerId())
	if wrong != nil {
		return nil, wrong
	}
	d := &diffs{root: "containers[" + c.of.Name + "]"}
	fixed(d, "resources.Devices", 0, len(req.GetResources().GetDevices()))
	d.limits("resources", req.GetResources())
	if d.first != nil {
		d.first.Container = c.of.Name
		return nil, d.first
	}
	return &Grant{}, nil
}

// sharedShm is the storage of the pod's own /dev/shm.
var sharedShm = storage{
	drivers: []string{contract.DriverEphemeral}, source: "shm", fstype: "tmpfs", at: contract.ShmDir, member: "sharedShm",
	options: []string{"noexec", "nosuid", "nodev", "mode=1777", anySize},
}

// dns compares the lines of resolv.conf.
func (d *diffs) dns(want policy.DNS, got []string) {
	if !want.FromHost {
		d.list("dns", "dns.lines", want.Lines, got)
		return
	}
	for i, line := range got {
		word, _, _ := strings.Cut(line, " ")
		if !policy.HasSyntax(policy.TypeAny, line) ||
			!slices.Contains([]string{"nameserver", "search", "domain", "options"}, word) {
			d.add(index("dns", i), "a line of resolv.conf", quote(line), "")
		}
	}
}

func updateInterface(e *Engine, m proto.Message) (*Grant, *Denial) {
	req, ok := m.(*pb.UpdateInterfaceRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d, got := &diffs{root: "pod.network"}, req.GetInterface()
	list := e.policy.Pod.Network.Interfaces
	i := slices.IndexFunc(list, func(w policy.Interface) bool { return w.Name == got.GetName() })
	if i < 0 {
		d.add("interface.name", "an interface of the policy", quote(got.GetName()), "interfaces with "+quote(got.GetName()))
		return nil, d.first
	}
	var addresses []string
	for j, a := range got.GetIPAddresses() {
		at := index("interface.IPAddresses", j)
		if address, err := netip.ParseAddr(a.GetAddress()); err != nil || loopback(address) {
			d.add(at+".address", "an address that is not the loopback device's", quote(a.GetAddress()), "")
		}
		addresses = append(addresses, a.GetAddress()+"/"+a.GetMask())
	}
	if len(list[i].Addresses) > 0 {
		d.set("interface.IPAddresses", key("interfaces", list[i].Name)+".addresses", list[i].Addresses, addresses)
	}
	if d.first != nil {
		return nil, d.first
	}
	return &Grant{}, nil
}

func loopback(a netip.Addr) bool { return a.Unmap().IsLoopback() }

func updateRoutes(e *Engine, m proto.Message) (*Grant, *Denial) {
	req, ok := m.(*pb.UpdateRoutesRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d := &diffs{root: "pod.network"}
	if !e.policy.Pod.Network.Routes {
		d.add("routes", "none", "some", "routes = true")
	}
	for i, r := range req.GetRoutes().GetRoutes() {
		at := index("routes.Routes", i)
		if r.GetDevice() == "lo" {
			d.add(at+".device", "another device than the loopback", quote(r.GetDevice()), "")
		}
		for _, f := range []struct{ name, text string }{
			{".dest", r.GetDest()}, {".gateway", r.GetGateway()}, {".source", r.GetSource()},
		} {
			if overlapsLoopback(f.text) {
				d.add(at+f.name, "no loopback address", quote(f.text), "")
			}
		}
	}
	if d.first != nil {
		return nil, d.first
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

func addNeighbours(e *Engine, m proto.Message) (*Grant, *Denial) {
	req, ok := m.(*pb.AddARPNeighborsRequest)
	if !ok {
		return nil, mistyped(m)
	}
	d := &diffs{root: "pod.network"}
	if !e.policy.Pod.Network.Neighbours {
		d.add("neighbors", "none", "some", "neighbours = true")
	}
	for i, n := range req.GetNeighbors().GetARPNeighbors() {
		d.neighbour(index("neighbors.ARPNeighbors", i), n)
	}
	if d.first != nil {
		return nil, d.first
	}
	return &Grant{}, nil
}

func (d *diffs) neighbour(at string, n *types.ARPNeighbor) {
	if n.GetDevice() == "lo" {
		d.add(at+".device", "another device than the loopback", quote(n.GetDevice()), "")
	}
	if overlapsLoopback(n.GetToIPAddress().GetAddress()) {
		d.add(at+".toIPAddress", "no loopback address", quote(n.GetToIPAddress().GetAddress()), "")
	}
}

// shortest says whether a path is absolute and in its shortest form.
func shortest(p string) bool { return path.IsAbs(p) && path.Clean(p) == p }
