// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// debugger returns a guest in which the container of a pod runs, and the request for one more, of another image and
// with another command, that the policy does not declare.
func debugger(t *testing.T, open bool) (*Engine, *pod, *pb.CreateContainerRequest) {
	t.Helper()
	fits := func(p *pod) bool {
		return len(p.creates) == 1 && len(p.creates[0].Devices) == 0 && !p.creates[0].SandboxPidns &&
			slices.ContainsFunc(p.policy.Containers[0].Mounts, func(m policy.Mount) bool { return m.Source.Volume != nil }) &&
			!slices.ContainsFunc(p.policy.Containers[0].Mounts, func(m policy.Mount) bool {
				return m.Source.Volume != nil && m.Source.Volume.SubPath != ""
			})
	}
	p := newPod(t, 0)
	for seed := uint64(1); !fits(p); seed++ {
		p = newPod(t, seed)
	}
	p.policy.Pod.Debug = open
	m := again(t, p.creates[0], "debug")
	m.OCI.Annotations[contract.CRIContainerName] = "debugger-x7"
	m.OCI.Process.Args, m.OCI.Process.Env = []string{"sh"}, []string{"PATH=/bin", "ANY=thing"}
	m.OCI.Process.User = &pb.User{}
	m.OCI.Process.Capabilities = &pb.LinuxCapabilities{Effective: []string{"CAP_SYS_PTRACE"}}
	m.OCI.Linux.Devices, m.OCI.Linux.RootfsPropagation = nil, ""
	m.OCI.Linux.Resources.Devices = m.OCI.Linux.Resources.Devices[:1]
	m.PidContainer = p.creates[0].GetContainerId()
	return p.until(t, 0, true), p, m
}

// TestContainersForDebugging: the capability debug admits a container that the policy does not declare, with any image
// and process, once, and what no container gets that way stays denied.
func TestContainersForDebugging(t *testing.T) {
	e, _, m := debugger(t, false)
	if err := call(e, "CreateContainer", m); code(err) != compare.Value {
		t.Errorf("with debug closed: %v", err)
	}
	e, p, m := debugger(t, true)
	for what, spoil := range map[string]func(*pb.CreateContainerRequest){
		"a name of the policy": func(m *pb.CreateContainerRequest) { m.OCI.Annotations[contract.CRIContainerName] = "c0" },
		"no name":              func(m *pb.CreateContainerRequest) { delete(m.OCI.Annotations, contract.CRIContainerName) },
		"processes of nobody":  func(m *pb.CreateContainerRequest) { m.PidContainer = "other" },
		"a device": func(m *pb.CreateContainerRequest) {
			m.OCI.Linux.Devices = []*pb.LinuxDevice{{Path: "/dev/x", Type: "b"}}
		},
		"a disk": func(m *pb.CreateContainerRequest) {
			m.Devices = []*pb.Device{{Type: contract.DriverSCSI, VmPath: "0:1"}}
		},
		"all devices":       func(m *pb.CreateContainerRequest) { m.OCI.Linux.Resources.Devices[0].Allow = true },
		"hooks":             func(m *pb.CreateContainerRequest) { m.OCI.Hooks = &pb.Hooks{} },
		"another root":      func(m *pb.CreateContainerRequest) { m.OCI.Root.Path = contract.Rootfs("id-c0") },
		"the guest's files": func(m *pb.CreateContainerRequest) { m.OCI.Mounts[2].Source = "/etc" },
		"the guest's files, as": func(m *pb.CreateContainerRequest) {
			m.OCI.Mounts[0].Options = []string{"rbind"}
			m.OCI.Mounts[0].Source = "/"
		},
		"an unknown type": func(m *pb.CreateContainerRequest) { m.OCI.Mounts[0].Type = "ext4" },
		"another's copies": func(m *pb.CreateContainerRequest) {
			m.OCI.Mounts[2].Source = strings.ReplaceAll(m.OCI.Mounts[2].Source, "debug", "id-c0")
		},
		"propagation": func(m *pb.CreateContainerRequest) { m.OCI.Linux.RootfsPropagation = "shared" },
		"a file system of the host": func(m *pb.CreateContainerRequest) {
			m.Storages = append(m.Storages, &pb.Storage{
				Driver: contract.DriverSCSI, Source: "0:7", Fstype: "ext4", MountPoint: "/x",
			})
		},
		"a layer without verity": func(m *pb.CreateContainerRequest) {
			for _, s := range m.Storages {
				if s.GetFstype() == "erofs" {
					s.DriverOptions = nil
				}
			}
		},
		"no layers": func(m *pb.CreateContainerRequest) { m.Storages = m.Storages[len(m.Storages)-1:] },
	} {
		bad := proto.CloneOf(m)
		spoil(bad)
		err := call(e, "CreateContainer", bad)
		if err == nil || strings.Contains(err.Error(), "allow with") && what != "a name of the policy" {
			t.Errorf("with %s: %v", what, err)
		}
	}
	long := make([]string, 1025) // each entry is compared with all of them
	for i := range long {
		long[i] = "/" + strconv.Itoa(i)
	}
	for field, spoil := range map[string]func(*pb.CreateContainerRequest){
		"OCI.Linux.MaskedPaths":   func(m *pb.CreateContainerRequest) { m.OCI.Linux.MaskedPaths = long },
		"OCI.Linux.ReadonlyPaths": func(m *pb.CreateContainerRequest) { m.OCI.Linux.ReadonlyPaths = long },
		"storages": func(m *pb.CreateContainerRequest) {
			m.Storages = append(make([]*pb.Storage, len(long)), m.Storages...)
		},
	} {
		bad := proto.CloneOf(m)
		spoil(bad)
		err := call(e, "CreateContainer", bad)
		if err == nil || !strings.Contains(err.Error(), field+": expected at most 1024") {
			t.Errorf("with many %s: %v", field, err)
		}
	}
	if err := call(e, "CreateContainer", m); err != nil {
		t.Fatal(err)
	}
	process := proto.CloneOf(p.execs[0])
	process.ContainerId, process.Process = "debug", proto.CloneOf(m.OCI.Process)
	process.Process.Args, process.Process.Terminal = []string{"anything"}, false
	if err := call(e, "StartContainer", &pb.StartContainerRequest{ContainerId: "debug"}); err != nil {
		t.Error(err)
	}
	if err := call(e, "ExecProcess", process); err != nil {
		t.Error(err)
	}
	if !e.Output("debug", "") {
		t.Error("the output of a container for debugging is closed")
	}
	second := again(t, m, "debug2")
	if err := call(e, "CreateContainer", second); code(err) != compare.Order {
		t.Errorf("a second one of the same name: %v", err)
	}
	// What the policy declares is not widened.
	other := again(t, p.creates[0], "id-c9")
	if err := call(e, "CreateContainer", other); code(err) != compare.Order {
		t.Errorf("a second instance of a declared container: %v", err)
	}
}

// TestContainersForDebuggingKnowTheirPlace: none takes a declared name, and none comes before init containers.
func TestContainersForDebuggingKnowTheirPlace(t *testing.T) {
	e, p, m := debugger(t, true)
	m.OCI.Annotations[contract.CRIContainerName] = p.policy.Containers[0].Name
	if err := call(e, "CreateContainer", m); code(err) != compare.Value {
		t.Errorf("under the name of a declared container: %v", err)
	}
	e, p, m = debugger(t, true)
	p.policy.Containers[0].Kind = policy.Init
	if err := call(e, "CreateContainer", m); code(err) != compare.Order {
		t.Errorf("before an init container has ended: %v", err)
	}
}
