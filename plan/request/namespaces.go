// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// shared are the namespaces that a pod can share with its host, and the words with which clients ask for it.
var shared = []struct {
	kind         specs.LinuxNamespaceType
	what, clause string
}{
	{specs.NetworkNamespace, "network", "hostNetwork, --net host"},
	{specs.PIDNamespace, "process ids", "hostPID, --pid host"},
	{specs.IPCNamespace, "shared memory and semaphores", "hostIPC, --ipc host"},
	{specs.UTSNamespace, "host name", "--uts host"},
}

// CheckPod refuses a pod that asks for namespaces of its host, by leaving them out of its specification, or of another
// container, by a path. A VM can give neither, and joining another container's network would take its
// interfaces away from it. alone: the specification is that of a pod of one, and its container's as well.
//
// The containers of a pod name their sandbox's namespaces by path; they are not checked here.
func CheckPod(s *specs.Spec, alone bool) error {
	var r refusals
	for _, ns := range shared {
		i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns.kind })
		switch {
		case i < 0:
			r.add("it asks for the host's %s (%s: the specification has no %s namespace), which a VM cannot give", ns.what,
				ns.clause, ns.kind)
		case ns.kind == specs.NetworkNamespace && ofProcess(s.Linux.Namespaces[i].Path):
			r.add("it asks for the network of another container (--net container:…, %s), whose interfaces the VM would take "+
				"away; "+
				"give this one a network of its own, or put both into one pod", s.Linux.Namespaces[i].Path)
		}
	}
	for _, n := range s.Linux.Namespaces {
		switch n.Type {
		case specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace:
			if alone && n.Path != "" {
				r.add("it asks for the %s namespace %s, of the host or of another container (--%s container:…), which a VM "+
					"cannot join", n.Type, n.Path, n.Type)
			}
		}
	}
	if len(r) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(r, "; "), errdefs.ErrInvalidArgument)
}

// ofProcess says whether a path names the namespace of a process. Engines name that of a container so which
// another one shall join; networks that they have made for the pod have names of their own.
func ofProcess(p string) bool { return strings.HasPrefix(path.Clean(p), "/proc/") }
