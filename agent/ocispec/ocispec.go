// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ocispec converts the agent protocol's mirror of the OCI runtime specification into the
// specification's own types, all fields of it. It is pure. Package agent decides what is changed in the
// specification afterwards (namespaces, root, cgroup).
//
// Where the wire cannot tell "zero" from "absent", zero means absent: an absent limit is no limit. The result shares no
// memory with the message, so the message stays as it was checked when the agent changes the specification.
package ocispec

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
)

// Spec converts a whole specification.
func Spec(in *agent.Spec) (*specs.Spec, error) {
	if in.GetProcess() == nil || in.GetRoot() == nil || in.GetLinux() == nil {
		return nil, fmt.Errorf("specification without process, root or linux: %w", errdefs.ErrInvalidArgument)
	}
	if in.Solaris != nil || in.Windows != nil {
		return nil, fmt.Errorf("specification for another system than Linux: %w", errdefs.ErrInvalidArgument)
	}
	process, err := Process(in.Process)
	if err != nil {
		return nil, err
	}
	lin, err := linux(in.Linux)
	if err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version:     in.Version,
		Process:     process,
		Root:        &specs.Root{Path: in.Root.Path, Readonly: in.Root.Readonly},
		Hostname:    in.Hostname,
		Mounts:      each(in.Mounts, mount),
		Hooks:       hooks(in.Hooks),
		Annotations: maps.Clone(in.Annotations),
		Linux:       lin,
	}, nil
}

// Process converts a process.
func Process(in *agent.Process) (*specs.Process, error) {
	if in == nil || len(in.Args) == 0 {
		return nil, fmt.Errorf("process without arguments: %w", errdefs.ErrInvalidArgument)
	}
	if in.OOMScoreAdj < -1000 || in.OOMScoreAdj > 1000 {
		return nil, fmt.Errorf("oomScoreAdj %d is not within -1000 and 1000: %w", in.OOMScoreAdj, errdefs.ErrInvalidArgument)
	}
	p := &specs.Process{
		Terminal:        in.Terminal,
		User:            user(in.User),
		Args:            slices.Clone(in.Args),
		Env:             slices.Clone(in.Env),
		Cwd:             in.Cwd,
		Rlimits:         each(in.Rlimits, rlimit),
		NoNewPrivileges: in.NoNewPrivileges,
		ApparmorProfile: in.ApparmorProfile,
		SelinuxLabel:    in.SelinuxLabel,
	}
	if in.OOMScoreAdj != 0 {
		p.OOMScoreAdj = new(int(in.OOMScoreAdj))
	}
	if b := in.ConsoleSize; b != nil {
		p.ConsoleSize = &specs.Box{Height: uint(b.Height), Width: uint(b.Width)}
	}
	if c := in.Capabilities; c != nil {
		p.Capabilities = &specs.LinuxCapabilities{
			Bounding: slices.Clone(c.Bounding), Effective: slices.Clone(c.Effective), Inheritable: slices.Clone(c.Inheritable),
			Permitted: slices.Clone(c.Permitted), Ambient: slices.Clone(c.Ambient),
		}
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	return p, nil
}

func user(in *agent.User) specs.User {
	return specs.User{
		UID: in.GetUID(), GID: in.GetGID(), AdditionalGids: slices.Clone(in.GetAdditionalGids()), Username: in.GetUsername(),
	}
}

func rlimit(in *agent.POSIXRlimit) specs.POSIXRlimit {
	return specs.POSIXRlimit{Type: in.Type, Hard: in.Hard, Soft: in.Soft}
}

func mount(in *agent.Mount) specs.Mount {
	return specs.Mount{Destination: in.Destination, Type: in.Type, Source: in.Source, Options: slices.Clone(in.Options)}
}

func hooks(in *agent.Hooks) *specs.Hooks {
	if in == nil {
		return nil
	}
	return &specs.Hooks{
		//lint:ignore SA1019 the protocol carries it, and refusing it needs to see it
		Prestart:        each(in.Prestart, hook),
		CreateRuntime:   each(in.CreateRuntime, hook),
		CreateContainer: each(in.CreateContainer, hook),
		StartContainer:  each(in.StartContainer, hook),
		Poststart:       each(in.Poststart, hook),
		Poststop:        each(in.Poststop, hook),
	}
}

func hook(in *agent.Hook) specs.Hook {
	h := specs.Hook{Path: in.Path, Args: slices.Clone(in.Args), Env: slices.Clone(in.Env)}
	if in.Timeout > 0 {
		h.Timeout = new(int(min(in.Timeout, math.MaxInt32)))
	}
	return h
}

func linux(in *agent.Linux) (*specs.Linux, error) {
	res, err := Resources(in.Resources)
	if err != nil {
		return nil, err
	}
	sec, err := seccomp(in.Seccomp)
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{
		UIDMappings:       each(in.UIDMappings, idMapping),
		GIDMappings:       each(in.GIDMappings, idMapping),
		Sysctl:            maps.Clone(in.Sysctl),
		Resources:         res,
		CgroupsPath:       in.CgroupsPath,
		Namespaces:        each(in.Namespaces, namespace),
		Devices:           each(in.Devices, device),
		Seccomp:           sec,
		RootfsPropagation: in.RootfsPropagation,
		MaskedPaths:       slices.Clone(in.MaskedPaths),
		ReadonlyPaths:     slices.Clone(in.ReadonlyPaths),
		MountLabel:        in.MountLabel,
	}
	if in.IntelRdt != nil {
		l.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: in.IntelRdt.L3CacheSchema}
	}
	return l, nil
}

func idMapping(in *agent.LinuxIDMapping) specs.LinuxIDMapping {
	return specs.LinuxIDMapping{ContainerID: in.ContainerID, HostID: in.HostID, Size: in.Size}
}

func namespace(in *agent.LinuxNamespace) specs.LinuxNamespace {
	return specs.LinuxNamespace{Type: specs.LinuxNamespaceType(in.Type), Path: in.Path}
}

func device(in *agent.LinuxDevice) specs.LinuxDevice {
	d := specs.LinuxDevice{
		Path: in.Path, Type: in.Type, Major: in.Major, Minor: in.Minor, UID: new(in.UID), GID: new(in.GID),
	}
	if in.FileMode != 0 {
		d.FileMode = new(os.FileMode(in.FileMode))
	}
	return d
}

// seccomp converts a filter. Every rule is kept: a filter that lost one would allow more.
func seccomp(in *agent.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	if in == nil {
		return nil, nil
	}
	if in.DefaultAction == "" {
		return nil, fmt.Errorf("seccomp filter without default action: %w", errdefs.ErrInvalidArgument)
	}
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(in.DefaultAction),
		Architectures: each(in.Architectures, func(s string) specs.Arch { return specs.Arch(s) }),
		Flags:         each(in.Flags, func(s string) specs.LinuxSeccompFlag { return specs.LinuxSeccompFlag(s) }),
		Syscalls:      each(in.Syscalls, syscallRule),
	}
	if in.DefaultErrnoRet != nil {
		out.DefaultErrnoRet = new(uint(*in.DefaultErrnoRet))
	}
	return out, nil
}

func syscallRule(in *agent.LinuxSyscall) specs.LinuxSyscall {
	r := specs.LinuxSyscall{
		Names:  slices.Clone(in.Names),
		Action: specs.LinuxSeccompAction(in.Action),
		Args:   each(in.Args, syscallArg),
	}
	if e, ok := in.ErrnoRet.(*agent.LinuxSyscall_Errnoret); ok {
		r.ErrnoRet = new(uint(e.Errnoret))
	}
	return r
}

func syscallArg(in *agent.LinuxSeccompArg) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{
		Index: uint(in.Index), Value: in.Value, ValueTwo: in.ValueTwo, Op: specs.LinuxSeccompOperator(in.Op),
	}
}

// each converts a list; an empty one stays absent.
func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}
