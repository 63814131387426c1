// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// early is what the shim knows of a request before the VM runs: bind mounts look like copies, and nothing has a device.
func early(m *pb.CreateContainerRequest) *pb.CreateContainerRequest {
	out := proto.CloneOf(m)
	out.Storages, out.Devices, out.SandboxPidns, out.PidContainer = nil, nil, false, ""
	out.StdoutPort, out.StderrPort = 0, 0
	for _, mount := range out.OCI.Mounts {
		if mount.Type == "bind" {
			mount.Source = "/some/place"
			mount.Options = slices.DeleteFunc(mount.Options, func(o string) bool { return o == "ro" })
		}
	}
	return out
}

// TestNothingAllowedIsForeseenAsDenied: of 200 pods, whatever the guest allows, and in any order.
func TestNothingAllowedIsForeseenAsDenied(t *testing.T) {
	for seed := range uint64(200) {
		p := newPod(t, seed)
		if len(p.creates) > 1 {
			p.policy.Containers[0].Kind = policy.Init
		}
		if err := Foresee(p.policy, p.sandbox, nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, c := range slices.Backward(p.creates) {
			if err := Foresee(p.policy, p.sandbox, early(c)); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

// TestADenialIsForeseenInTheGuestsWords: what differs in the specification is denied with the text that the guest has.
func TestADenialIsForeseenInTheGuestsWords(t *testing.T) {
	p := one(t)
	for what, change := range map[string]func(*pb.CreateContainerRequest){
		"arguments":    func(m *pb.CreateContainerRequest) { m.OCI.Process.Args = []string{"sh"} },
		"environment":  func(m *pb.CreateContainerRequest) { m.OCI.Process.Env = append(m.OCI.Process.Env, "X=1") },
		"a mount":      func(m *pb.CreateContainerRequest) { m.OCI.Mounts = m.OCI.Mounts[1:] },
		"options":      func(m *pb.CreateContainerRequest) { m.OCI.Mounts[1].Options = []string{"size=1m"} },
		"a word":       func(m *pb.CreateContainerRequest) { m.OCI.Mounts[0].Source = "x" },
		"capabilities": func(m *pb.CreateContainerRequest) { m.OCI.Process.Capabilities.Ambient = []string{"CAP_KILL"} },
		"stdin":        func(m *pb.CreateContainerRequest) { m.StdinPort = 9 },
		"the root":     func(m *pb.CreateContainerRequest) { m.OCI.Root.Path = "/" },
	} {
		m := proto.CloneOf(p.creates[0])
		change(m)
		want := call(p.until(t, 0, false), "CreateContainer", m)
		got := Foresee(p.policy, p.sandbox, early(m))
		if want == nil || got == nil || got.Error() != want.Error() {
			t.Errorf("%s: foreseen as %v, denied with %v", what, got, want)
		}
	}
	box := proto.CloneOf(p.sandbox)
	box.Hostname = "other"
	want := call(New(p.policy), "CreateSandbox", box)
	if got := Foresee(p.policy, box, early(p.creates[0])); got == nil || got.Error() != want.Error() {
		t.Errorf("the sandbox: foreseen as %v, denied with %v", got, want)
	}
	if err := Foresee(p.policy, p.sandbox, &pb.CreateContainerRequest{ContainerId: "a/b"}); code(err) != "id" {
		t.Errorf("an id with a slash: %v", err)
	}
	p.policy.Pod.Debug = true
	other := early(p.creates[0])
	other.OCI.Annotations = map[string]string{contract.CRIContainerName: "debugger"}
	other.OCI.Linux.Devices = nil
	if err := Foresee(p.policy, p.sandbox, other); err != nil && !strings.Contains(err.Error(), "deviceRules") &&
		!strings.Contains(err.Error(), "Resources.Devices") {
		t.Errorf("a container for debugging: %v", err)
	}
}

// TestADebuggersPlaceIsNotForeseen: whether init containers have ended is known to the guest only.
func TestADebuggersPlaceIsNotForeseen(t *testing.T) {
	_, p, m := debugger(t, true)
	p.policy.Containers[0].Kind = policy.Init
	if err := Foresee(p.policy, p.sandbox, early(m)); err != nil {
		t.Error(err)
	}
}
