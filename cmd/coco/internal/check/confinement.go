// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/probe"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
)

// confinementTimeout bounds the start of a VMM that only prints its version.
const confinementTimeout = 15 * time.Second

// checkConfinement says what keeps a VMM from the host whose guest has broken out of it
// (docs/decisions/confinement.md).
func checkConfinement(ctx context.Context, cfg configs.Config) []probe.Check {
	h := cfg.Hypervisor
	o := jail.Options{User: uint32(h.FirstUser), Paths: h.ExtraPaths} //nolint:gosec // the schema bounds it
	has := "without capabilities"
	o.Disks = h.Type == configs.TypeCLH
	var lends error
	if o.Disks && os.Geteuid() == 0 {
		if lends = jail.Lends(o.User, cfg.Runtime.LayerCache, cfg.Runtime.ScratchDir); lends != nil {
			o.Capabilities, has = []int{unix.CAP_DAC_OVERRIDE}, "with no capability but dac_override"
		}
	}
	return []probe.Check{
		{Name: "confined", Required: true, Run: func() (string, error) {
			if os.Geteuid() != 0 {
				return "whether the VMM can be confined", probe.ErrUntried
			}
			ctx, cancel := context.WithTimeout(ctx, confinementTimeout)
			defer cancel()
			if err := launch.Try(ctx, h.Path, o); err != nil {
				return "the VMM cannot be started as it has to be", err
			}
			return fmt.Sprintf("the VMM starts as a user from %d on, %s, without core file, in mount, pid, ipc and uts "+
				"namespaces of its own; its root is empty once it runs", h.FirstUser, has), nil
		}},
		{Name: "confined.mem", Run: func() (string, error) {
			err := jail.Private(h.Path)
			if lends != nil {
				err = fmt.Errorf("it needs a capability, since disks cannot be lent to its user, and with that it may "+
					"read its own program, so the kernel lets it be read: %w", lends)
			}
			if err != nil {
				return "a VMM's memory can be read by processes of its own user, of which there are none", err
			}
			return "the VMM is not dumpable", nil
		}},
		{Name: "confined.lsm", Run: func() (string, error) {
			version := jail.LandlockVersion()
			if err := jail.LandlockLacks(version); err != nil {
				return fmt.Sprintf("Landlock (version %d) keeps the VMM from less than it could", version), err
			}
			return fmt.Sprintf("Landlock (version %d) keeps the VMM from other files, ioctl on other devices, TCP, abstract "+
				"sockets, "+
				"and signals to others", version), nil
		}},
		{Name: "confined.dev", Run: func() (string, error) {
			if os.Geteuid() != 0 {
				return "whether a cgroup can keep the VMM from devices", probe.ErrUntried
			}
			if err := cgroups.CanLimitDevices(); err != nil {
				return "no cgroup keeps the VMM from devices; its root has no device nodes once it runs, and it cannot make any",
					err
			}
			return "a cgroup keeps the VMM from all devices but its own", nil
		}},
	}
}
