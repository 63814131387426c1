// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Membership is where a process is in each hierarchy.
type Membership []string

// Self tells where this process is.
func Self(hs []Hierarchy) (Membership, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return memberships(hs, string(text)), nil
}

// memberships reads lines of cgroup(7): number, controllers, path.
func memberships(hs []Hierarchy, text string) Membership {
	var m Membership
	for _, h := range hs {
		group := h.Mount // the root, for a process whose group is not listed
		for line := range strings.Lines(text) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
			if len(f) == 3 && h.has(f[1]) {
				group = filepath.Join(h.Mount, f[2])
			}
		}
		m = append(m, group)
	}
	return m
}

// has says whether a hierarchy is the one with these controllers.
func (h Hierarchy) has(controllers string) bool {
	if h.V2 || controllers == "" {
		return h.V2 && controllers == ""
	}
	for c := range strings.SplitSeq(controllers, ",") {
		if !strings.Contains(","+h.Options+",", ","+c+",") {
			return false
		}
	}
	return true
}

// Return puts a process back to where it was, or, where that is gone, to the root.
func (m Membership) Return(hs []Hierarchy, pid int) error {
	var errs []error
	for i, group := range m {
		err := enter(group, pid)
		if errors.Is(err, fs.ErrNotExist) {
			err = enter(hs[i].Mount, pid)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func enter(group string, pid int) error {
	err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	if err != nil {
		return fmt.Errorf("put process %d into cgroup %s: %w", pid, group, err)
	}
	return nil
}

// SpareLikeSelf has the kernel, when memory is short, spare processes as it spares this one.
func SpareLikeSelf(pids []int) error {
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	for _, pid := range pids {
		if err == nil {
			err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), score, 0)
		}
	}
	return err
}
