// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standby

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Of is the store below runtime.state_dir.
func Of(stateDir string) Store { return Store{filepath.Join(stateDir, "standby")} }

// End sends a signal to a process that has no pod, so that it ends with its VM.
func (s Store) End(name string, signal unix.Signal) error {
	live, _, err := s.List()
	if err != nil {
		return err
	}
	for _, e := range live {
		if e.Name != name {
			continue
		}
		// A client that comes now finds nobody.
		dir := filepath.Join(s.Dir, name)
		err := os.Rename(filepath.Join(dir, metaName), filepath.Join(dir, endedName))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(filepath.Join(dir, takenName)); err == nil {
				return fmt.Errorf("standby VM %s has a pod: %w", name, errdefs.ErrFailedPrecondition)
			}
		} else if err != nil {
			return err
		}
		if err := unix.Kill(e.Process.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end standby VM %s: %w", name, err)
		}
	}
	return nil
}

// Gone waits until nothing of a process is left in the store.
func (s Store) Gone(ctx context.Context, name string) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if _, err := os.Lstat(filepath.Join(s.Dir, name)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("it does not end: %w", context.Cause(ctx))
		}
	}
}
