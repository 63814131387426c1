// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/devnode"
)

// rawIO is the capability for the guest's memory as a whole and its processor's ports (/dev/mem, /proc/kcore, ioperm):
// no container has it, a privileged one included. The agent's memory is not the pod's.
const rawIO = "CAP_SYS_RAWIO"

// With these capabilities a process may use the features of kernel modules: links and packet filters, and devices.
const (
	netAdmin = "CAP_NET_ADMIN"
	sysAdmin = "CAP_SYS_ADMIN"
)

// legacyTables are modules for which iptables-legacy runs a modprobe: the kernel does not ask for them by itself.
var legacyTables = []string{"ip_tables", "ip6_tables"}

// tun is the device that kernel module tun serves (Documentation/admin-guide/devices.txt).
var tun = [2]int64{10, 200}

// prepare adapts a specification and the guest to the container's rights. It removes rights that no container may have,
// and makes devices and modules available that the container may use.
func (s *service) prepare(spec *specs.Spec) error {
	all := devnode.AllAllowed(spec)
	if err := s.rights(spec.Process, all); err != nil {
		return err
	}
	for _, d := range spec.Linux.Devices {
		if d.Type != "c" || [2]int64{d.Major, d.Minor} != tun {
			continue
		}
		// An image without the module may have it built in.
		if err := s.Modules.Load("tun"); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	if !all {
		return nil
	}
	return devnode.Add(spec, "/dev", s.Closed)
}

// rights does the same for a process.
func (s *service) rights(p *specs.Process, all bool) error {
	c := p.Capabilities
	if c != nil {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient} {
			*set = slices.DeleteFunc(*set, func(name string) bool { return name == rawIO })
		}
	}
	has := func(name string) bool { return all || c != nil && slices.Contains(c.Bounding, name) }
	switch {
	case has(netAdmin):
		return s.Modules.Open(legacyTables...)
	case has(sysAdmin):
		return s.Modules.Open()
	}
	return nil
}
