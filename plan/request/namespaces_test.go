// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func podOf(edit func(specs.LinuxNamespace) (specs.LinuxNamespace, bool)) *specs.Spec {
	s := &specs.Spec{Linux: &specs.Linux{}}
	for _, k := range []specs.LinuxNamespaceType{
		specs.NetworkNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace,
		specs.CgroupNamespace,
	} {
		if ns, ok := edit(specs.LinuxNamespace{Type: k}); ok {
			s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		}
	}
	return s
}

func TestAPodOfItsOwnNamespacesIsFine(t *testing.T) {
	for _, network := range []string{"", "/run/netns/cni-1", "/var/run/docker/netns/abc"} {
		s := podOf(func(n specs.LinuxNamespace) (specs.LinuxNamespace, bool) {
			if n.Type == specs.NetworkNamespace {
				n.Path = network
			}
			return n, true
		})
		for _, alone := range []bool{true, false} {
			if err := CheckPod(s, alone); err != nil {
				t.Errorf("network %q, alone %v: %v", network, alone, err)
			}
		}
	}
}

func TestAPodThatAsksForTheHostsNamespacesIsRefusedByName(t *testing.T) {
	for kind, want := range map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "hostNetwork", specs.PIDNamespace: "hostPID", specs.IPCNamespace: "hostIPC",
		specs.UTSNamespace: "--uts host",
	} {
		s := podOf(func(n specs.LinuxNamespace) (specs.LinuxNamespace, bool) { return n, n.Type != kind })
		for _, alone := range []bool{true, false} {
			err := CheckPod(s, alone)
			if err == nil || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("no %s namespace, alone %v: %v, want a refusal that says %s", kind, alone, err, want)
			}
		}
	}
}

func TestAContainerThatJoinsAnothersNamespacesIsRefusedByName(t *testing.T) {
	for kind, path := range map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "/proc/42/ns/net", specs.IPCNamespace: "/proc/42/ns/ipc", specs.UTSNamespace: "/run/uts",
		specs.MountNamespace: "/run/mnt",
	} {
		s := podOf(func(n specs.LinuxNamespace) (specs.LinuxNamespace, bool) {
			if n.Type == kind {
				n.Path = path
			}
			return n, true
		})
		err := CheckPod(s, true)
		if err == nil || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s namespace %s: %v, want a refusal that names it", kind, path, err)
		}
	}
	s := podOf(func(n specs.LinuxNamespace) (specs.LinuxNamespace, bool) {
		return n, !slices.Contains([]specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace}, n.Type)
	})
	if err := CheckPod(s, true); err == nil || !strings.Contains(err.Error(), "hostPID") ||
		!strings.Contains(err.Error(), "hostIPC") {
		t.Errorf("of two refusals: %v", err)
	}
}
