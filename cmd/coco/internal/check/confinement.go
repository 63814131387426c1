// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/probe"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
)

// confinementTimeout bounds the start of a VMM that only prints its version.
const confinementTimeout = 15 * time.Second

// checkConfinement says what keeps a VMM from the host whose guest has broken out of it (docs/decisions/confinement.md).
func checkConfinement(ctx context.Context, cfg configs.Config) []probe.Check {
	h := cfg.Hypervisor
	if h.Type == configs.TypeCLH {
		return []probe.Check{{Name: "confined", Run: func() (string, error) {
			return "no: the VMM runs as root, with what its seccomp and landlock options leave it",
				errors.New("nothing to do: Cloud Hypervisor opens its disks by name and is not confined by coco yet; QEMU is")
		}}}
	}
	return []probe.Check{
		{Name: "confined", Required: true, Run: func() (string, error) {
			if os.Geteuid() != 0 {
				return "whether the VMM can be confined", probe.ErrUntried
			}
			ctx, cancel := context.WithTimeout(ctx, confinementTimeout)
			defer cancel()
			o := jail.Options{User: uint32(h.FirstUser), Paths: h.ExtraPaths} //nolint:gosec // the schema bounds it
			if err := launch.Try(ctx, h.Path, o); err != nil {
				return "the VMM cannot be started as it has to be", err
			}
			return fmt.Sprintf("the VMM starts as a user from %d on, without capabilities and core file, in mount, pid, ipc and uts "+
				"namespaces of its own; its root is empty once it runs", h.FirstUser), nil
		}},
		{Name: "confined.mem", Run: func() (string, error) {
			if err := jail.Private(h.Path); err != nil {
				return "a VMM's memory can be read by processes of its own user, of which there are none", err
			}
			return "the VMM is not dumpable", nil
		}},
		{Name: "confined.lsm", Run: func() (string, error) {
			version := jail.LandlockVersion()
			if err := jail.LandlockLacks(version); err != nil {
				return fmt.Sprintf("Landlock (version %d) keeps the VMM from less than it could", version), err
			}
			return fmt.Sprintf("Landlock (version %d) keeps the VMM from other files, ioctl on other devices, TCP, abstract sockets, "+
				"and signals to others", version), nil
		}},
		{Name: "confined.dev", Run: func() (string, error) {
			if os.Geteuid() != 0 {
				return "whether a cgroup can keep the VMM from devices", probe.ErrUntried
			}
			if err := cgroups.CanLimitDevices(); err != nil {
				return "no cgroup keeps the VMM from devices; its root has no device nodes once it runs, and it cannot make any", err
			}
			return "a cgroup keeps the VMM from all devices but its own", nil
		}},
	}
}
