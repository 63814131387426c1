// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
)

// A pod's sysctls are set with its sandbox, those of a pod of one with its container.
func TestSandbox(t *testing.T) {
	spec := &specs.Spec{Hostname: "web", Linux: &specs.Linux{Sysctl: map[string]string{"net.core.somaxconn": "9"}}}
	for _, tc := range []struct {
		name string
		in   request.SandboxInput
		want *agent.CreateSandboxRequest
	}{
		{
			"a pod with shared memory",
			request.SandboxInput{ID: "p", Spec: spec, SharedShm: true, ShmBytes: 1 << 20},
			&agent.CreateSandboxRequest{
				Hostname: "web", SandboxId: "p", Sysctls: spec.Linux.Sysctl,
				Storages: []*agent.Storage{{
					Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", MountPoint: contract.ShmDir,
					Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=1048576"},
				}},
			},
		},
		{"a pod of one", request.SandboxInput{ID: "p", Spec: spec, Alone: true}, &agent.CreateSandboxRequest{
			Hostname:  "web",
			SandboxId: "p",
		}},
	} {
		if d := cmp.Diff(tc.want, request.Sandbox(tc.in), protocmp.Transform()); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

func TestContainer(t *testing.T) {
	layer, device := &agent.Storage{Driver: "scsi"}, &agent.Device{Id: "d"}
	got := request.Container(request.ContainerInput{
		ID: "c", OCI: &agent.Spec{Process: &agent.Process{Args: []string{"sh"}}}, Terminal: true,
		Storages: []*agent.Storage{layer}, Devices: []*agent.Device{device}, SharedPIDs: true, PIDsOf: "other",
	})
	want := &agent.CreateContainerRequest{
		ContainerId: "c", ExecId: "c", OCI: &agent.Spec{Process: &agent.Process{Args: []string{"sh"}, Terminal: true}},
		Storages: []*agent.Storage{layer}, Devices: []*agent.Device{device}, SandboxPidns: true, PidContainer: "other",
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Limits that the process does not name are the defaults; a umask of an exec means nothing, as under runc.
func TestExec(t *testing.T) {
	umask := uint32(0o077)
	in := &specs.Process{
		Args: []string{"sh"}, User: specs.User{Umask: &umask},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
	}
	got, err := request.Exec(request.ExecInput{
		Container: "c", ID: "e", Process: in, Terminal: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9, Soft: 9}, {Type: "RLIMIT_NPROC", Hard: 8, Soft: 7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &agent.ExecProcessRequest{ContainerId: "c", ExecId: "e", Process: &agent.Process{
		Args: []string{"sh"}, Terminal: true, User: &agent.User{},
		Rlimits: []*agent.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}, {Type: "RLIMIT_NPROC", Hard: 8, Soft: 7}},
	}}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if in.User.Umask == nil {
		t.Error("the caller's process was changed")
	}
}

func TestWhatCannotTravelIsRefused(t *testing.T) {
	for name, in := range map[string]request.ExecInput{
		"no process":   {Container: "c", ID: "e"},
		"no arguments": {Container: "c", ID: "e", Process: &specs.Process{}},
		"a zero byte":  {Container: "c", ID: "e", Process: &specs.Process{Args: []string{"a\x00b"}}},
	} {
		if got, err := request.Exec(in); err == nil {
			t.Errorf("%s: %v, want a refusal", name, got)
		}
	}
}
