// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policytest writes policies for tests, from what the shim sends. A policy that people use is made from a
// manifest and images instead: it would not be the owner's if the host had a say in it.
package policytest

import (
	"maps"
	"path"
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// Container writes a specification down as the container of a policy that allows it and nothing else. volumes are the
// sources of its last mounts; shm says that the pod has a /dev/shm of its own.
func Container(name string, layers []string, volumes []policy.Source, oci *pb.Spec, shm bool) policy.Container {
	p, l := oci.GetProcess(), oci.GetLinux()
	c := policy.Container{
		Name: name, Kind: policy.App, Restart: policy.Always, ReadonlyRfs: oci.GetRoot().GetReadonly(),
		Image: policy.Image{Manifest: "sha256:" + layers[0], Layers: layers},
		Process: policy.Process{
			Args: p.GetArgs(), Cwd: p.GetCwd(), TTY: p.GetTerminal(), NoNewPrivileges: p.GetNoNewPrivileges(),
			User: policy.User{UID: p.GetUser().GetUID(), GID: p.GetUser().GetGID(), Groups: p.GetUser().GetAdditionalGids()},
			Caps: policy.Caps{
				Bounding: p.GetCapabilities().GetBounding(), Effective: p.GetCapabilities().GetEffective(),
				Inheritable: p.GetCapabilities().GetInheritable(), Permitted: p.GetCapabilities().GetPermitted(),
				Ambient: p.GetCapabilities().GetAmbient(),
			},
		},
		Linux: policy.Linux{
			Sysctls: l.GetSysctl(), Masked: policy.Paths{Required: l.GetMaskedPaths()},
			Readonly: policy.Paths{Required: l.GetReadonlyPaths()}, Seccomp: []string{policy.SeccompDigest(l.GetSeccomp())},
			Propagation: l.GetRootfsPropagation(),
		},
		Allow: policy.Capabilities{Logs: true},
	}
	for _, e := range p.GetEnv() {
		n, v, _ := strings.Cut(e, "=")
		value := policy.Value{Is: &v}
		if n == "POD_IP" {
			value = policy.Value{Field: policy.FieldPodIP}
		}
		c.Process.Env = append(c.Process.Env, policy.Env{Name: n, Value: value})
	}
	for _, r := range p.GetRlimits() {
		c.Process.Rlimits.Limits = append(c.Process.Rlimits.Limits, policy.Rlimit{Type: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	linux(&c.Linux, l)
	for _, k := range slices.Sorted(maps.Keys(oci.GetAnnotations())) {
		value := policy.Value{Is: new(oci.GetAnnotations()[k])}
		if k == contract.CRISandboxID {
			value = policy.Value{Field: policy.FieldSandboxID}
		}
		c.Annotations = append(c.Annotations, policy.Annotation{Key: k, Value: value})
	}
	first := len(oci.GetMounts()) - len(volumes)
	for i, m := range oci.GetMounts() {
		e := policy.Mount{Destination: m.Destination, Type: m.Type, Options: m.Options, Source: policy.Source{Is: &m.Source}}
		switch {
		case i >= first:
			e.Source = volumes[i-first]
		case shm && path.Base(m.Destination) == "shm":
			e.Source = policy.Source{Shm: true}
		case m.Type == "bind":
			e.Source = policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}}
		}
		c.Mounts = append(c.Mounts, e)
	}
	return c
}

// linux writes down namespaces and devices.
func linux(c *policy.Linux, l *pb.Linux) {
	for _, n := range l.GetNamespaces() {
		c.Namespaces = append(c.Namespaces, n.Type)
	}
	for _, d := range l.GetDevices() {
		c.Devices = append(c.Devices, policy.Device{
			Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: d.FileMode, UID: d.UID, GID: d.GID,
		})
	}
	for _, d := range l.GetResources().GetDevices() {
		c.DeviceRule = append(c.DeviceRule, policy.DeviceRule{
			Allow: d.Allow, Type: d.Type, Major: d.Major, Minor: d.Minor, Access: d.Access,
		})
	}
}
