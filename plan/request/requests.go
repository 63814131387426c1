// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// SandboxInput describes a pod to its guest.
type SandboxInput struct {
	ID   string
	Spec *specs.Spec // of the pod: its sandbox container, or its only container
	// Alone says that the pod is its only container, whose own request has the sysctls.
	Alone bool
	// SharedShm gives the pod a /dev/shm of its own of ShmBytes.
	SharedShm bool
	ShmBytes  uint64
}

// Sandbox returns the request that makes the pod in the guest.
func Sandbox(in SandboxInput) *agent.CreateSandboxRequest {
	req := &agent.CreateSandboxRequest{Hostname: in.Spec.Hostname, SandboxId: in.ID}
	if !in.Alone {
		req.Sysctls = in.Spec.Linux.Sysctl
	}
	if in.SharedShm {
		req.Storages = []*agent.Storage{{
			Driver: contract.DriverEphemeral, Source: "shm", Fstype: "tmpfs", MountPoint: contract.ShmDir,
			Options: []string{"noexec", "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", in.ShmBytes)},
		}}
	}
	return req
}

// ContainerInput has all inputs of a container's request except the ports of its streams. Those belong to one
// connection and are set when it is made.
type ContainerInput struct {
	ID       string
	OCI      *agent.Spec // from Convert; the request holds it
	Terminal bool
	Storages []*agent.Storage
	Devices  []*agent.Device
	// SharedPIDs puts the container into the pod's process namespace, PIDsOf into that of another container.
	SharedPIDs bool
	PIDsOf     string
}

// Container returns the request that makes a container.
func Container(in ContainerInput) *agent.CreateContainerRequest {
	in.OCI.Process.Terminal = in.Terminal
	return &agent.CreateContainerRequest{
		ContainerId: in.ID, ExecId: in.ID, Storages: in.Storages, Devices: in.Devices, OCI: in.OCI,
		SandboxPidns: in.SharedPIDs, PidContainer: in.PIDsOf,
	}
}

// ExecInput is a further process of a container.
type ExecInput struct {
	Container, ID string
	Process       *specs.Process // not written to
	Terminal      bool
	Rlimits       []specs.POSIXRlimit // where the process names none
}

// Exec returns the request that starts a further process in a container. Settings that cannot be sent to the
// guest are refused as by Convert. Ports of streams are missing as in Container.
func Exec(in ExecInput) (*agent.ExecProcessRequest, error) {
	var r refusals
	if in.Process == nil {
		r.add("the exec has no process")
		return nil, r.err(in.Container)
	}
	p := *in.Process
	p.User.Umask = nil // runc heeds that of the container's first process only
	out := r.process("process", &p, in.Rlimits)
	out.Terminal = in.Terminal
	return &agent.ExecProcessRequest{ContainerId: in.Container, ExecId: in.ID, Process: out}, r.err(in.Container)
}

// Update returns the request that changes a container's limits.
func Update(container string, res *specs.LinuxResources) (*agent.UpdateContainerRequest, error) {
	var r refusals
	return &agent.UpdateContainerRequest{ContainerId: container, Resources: r.resources(res)}, r.err(container)
}
