// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Pids lists the processes of the group and of the groups below it. A group that is gone has none.
func (g Group) Pids() ([]uint32, error) {
	var pids []uint32
	err := filepath.WalkDir(g.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if gone(err) {
				return nil
			}
			return err
		}
		if !e.IsDir() {
			return nil
		}
		list, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, l := range strings.Fields(string(list)) {
			pid, err := strconv.ParseUint(l, 10, 32)
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			pids = append(pids, uint32(pid))
		}
		return nil
	})
	return pids, err
}
