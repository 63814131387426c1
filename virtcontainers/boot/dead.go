// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
)

// orDead names the death of the process that becomes the VMM as the reason of a step's error, which may be just one
// of its effects, as "no such process". The driver says it itself, and ends the process when it refuses.
func (c *creation) orDead(step string, err error) error {
	var dead *hypervisor.DeadError
	if c.Place == nil || step == "vmm" || errors.As(err, &dead) {
		return err
	}
	patience := time.Duration(0)
	if showsDeath(err, c.Place.PID()) { // that it was reaped follows
		patience = time.Second
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c.Place.Done():
	case <-t.C:
		select {
		case <-c.Place.Done(): // both were ready
		default:
			return err
		}
	}
	return fmt.Errorf("%w: %w", err, c.Place.Err())
}

// showsDeath reports whether an error is one that the end of a process causes. An exiting process loses its namespaces
// before it is a zombie: its /proc/PID/ns/net does not exist then.
func showsDeath(err error, pid int) bool {
	var file *fs.PathError
	return errors.Is(err, unix.ESRCH) ||
		errors.As(err, &file) && strings.HasPrefix(file.Path, fmt.Sprintf("/proc/%d/", pid))
}
