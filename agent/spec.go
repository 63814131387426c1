// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/guard"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
)

// checkContainerID admits the ids that containerd and the protocol admit. None of them names another directory.
func checkContainerID(id string) error {
	if !ident.ID(id) || slices.Contains(guard.Common, id) {
		return fmt.Errorf("container id %q: want up to %d letters, digits, '_', '.', '-', and not a reserved name: %w", id,
			ident.MaxID, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkExecID(id string) error {
	if !ident.ID(id) {
		return fmt.Errorf("exec id %q: want up to %d letters, digits, '_', '.', '-': %w", id, ident.MaxID,
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// surroundings are the properties of a container that come from its sandbox.
type surroundings struct {
	bundle   string
	hostname string            // of the sandbox
	cgroup   string            // path for the container
	ns       map[string]string // namespace type to path, of the sandbox; "" or absent: none
}

// adapt changes a specification that the host wrote into one for this guest. It is pure but for the
// specification, which it owns. Network sysctls are returned: they concern the guest's own network
// namespace, which the runtime would refuse to touch.
func adapt(s *specs.Spec, env surroundings) (sysctls map[string]string, err error) {
	if err := errors.Join(guard.Hooks(s.Hooks), guard.Hostname(s.Hostname)); err != nil {
		return nil, err
	}
	s.Hooks, s.Annotations = nil, guard.Annotations(s.Annotations)
	if err := checkMounts(s.Mounts, env.bundle); err != nil {
		return nil, err
	}
	s.Root.Path = filepath.Join(env.bundle, contract.RootfsName)
	s.Linux.CgroupsPath = env.cgroup
	// Profiles and labels name policies that were loaded on the host; this kernel has none.
	s.Process.ApparmorProfile, s.Process.SelinuxLabel, s.Linux.MountLabel = "", "", ""
	s.Linux.Namespaces = namespaces(s.Linux.Namespaces, s.Hostname, env)
	if s.Hostname == env.hostname || s.Hostname == "" {
		s.Hostname = "" // the joined namespace has it
	}
	sysctls = map[string]string{}
	for k, v := range s.Linux.Sysctl {
		if strings.HasPrefix(k, "net.") || strings.HasPrefix(k, "net/") {
			sysctls[k] = v
			delete(s.Linux.Sysctl, k)
		}
	}
	return sysctls, nil
}

// checkMounts admits mounts as package guard does.
func checkMounts(mounts []specs.Mount, bundle string) error { return guard.Mounts(mounts, bundle) }

// namespaces decides which namespaces the container makes and which of the sandbox's it joins.
// Paths from the host mean nothing here.
func namespaces(in []specs.LinuxNamespace, hostname string, env surroundings) []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	for _, t := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		p := env.ns[string(t)]
		if t == specs.UTSNamespace && hostname != "" && hostname != env.hostname {
			p = "" // a name of its own needs a namespace of its own
		}
		out = append(out, specs.LinuxNamespace{Type: t, Path: p})
	}
	for _, n := range in {
		if n.Type == specs.UserNamespace || n.Type == specs.TimeNamespace {
			out = append(out, specs.LinuxNamespace{Type: n.Type})
		}
	}
	return out
}
