// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// freezeTime bounds the wait for a group to stand still. A process in the kernel may take longer; the signal goes out
// all the same.
const freezeTime = 2 * time.Second

// Signal sends a signal to every process of the group and of the groups below it. They stand still meanwhile, so that
// none of them gets it twice and none that it makes on hearing of it gets it at all. A group that is gone has none.
func (g Group) Signal(ctx context.Context, sig unix.Signal) (err error) {
	events, err := readSmall(g.file("cgroup.events"))
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup file: %w", err)
	}
	if parseKeys(events)["frozen"] == 0 {
		stop, cancel := context.WithTimeout(ctx, freezeTime)
		defer cancel()
		defer func() {
			if thaw := g.Freeze(context.WithoutCancel(ctx), false); !gone(thaw) {
				err = errors.Join(err, thaw)
			}
		}()
		if err := g.Freeze(stop, true); err != nil && stop.Err() == nil && !gone(err) {
			return err
		}
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if pid <= 1 { // of another namespace, or the agent itself
			continue
		}
		if err := unix.Kill(int(pid), sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal %d to process %d: %w", sig, pid, err))
		}
	}
	return errors.Join(errs...)
}
