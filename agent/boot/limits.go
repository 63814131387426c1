// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
)

// kernelLimits are those of a kernel as a whole that distributions and kubelets set on the nodes of
// containers. The kernel's own are small, or derived from a memory that is small in a guest. The bounded
// resources are charged to the memory of the container that uses them.
var kernelLimits = []struct{ file, value string }{
	{"fs/nr_open", "2147483584"}, // the kernel's maximum: no RLIMIT_NOFILE of a host is above it
	{"fs/file-max", "9223372036854775807"},
	{"fs/inotify/max_user_watches", "1048576"},
	{"fs/inotify/max_user_instances", "8192"},
	{"fs/inotify/max_queued_events", "16384"},
	{"kernel/pid_max", "4194304"},
	{"kernel/keys/root_maxkeys", "1000000"},
	{"kernel/keys/root_maxbytes", "25000000"},
	{"vm/max_map_count", "1048576"},
	// As a kubelet sets it: memory is short when it is used, and then the OOM killer tells, not an allocation that fails.
	{"vm/overcommit_memory", "1"},
}

// RaiseLimits sets the limits of the kernel as a whole. One that cannot be set does not keep back the others.
func RaiseLimits() error { return raiseLimits("/proc/sys/") }

func raiseLimits(root string) error {
	var errs []error
	for _, l := range kernelLimits {
		if err := writeFile(root+l.file, l.value); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", l.file, err))
		}
	}
	return errors.Join(errs...)
}
