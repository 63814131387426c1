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
)

// The leaves of a pod's group. The limits of the VMM's would bind the shim too if it were below or in it.
const (
	VMM  = "vmm"
	Shim = "shim"
)

// set writes a file of a group, if there is one.
func set(group, file, value string) error {
	name := filepath.Join(group, file)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0) // not O_CREATE, to which cgroups answer EACCES
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", value, name, err)
	}
	return nil
}

// LimitProcesses bounds the processes and threads in the groups.
func LimitProcesses(groups []string, most uint64) error {
	var errs []error
	for _, g := range groups {
		errs = append(errs, set(g, "pids.max", strconv.FormatUint(most, 10)))
	}
	return errors.Join(errs...)
}

// SetQuota gives the groups of a place the processor time that the pod's own group allows.
func (p Place) SetQuota(hs []Hierarchy) error {
	if p.Quota == 0 {
		return nil
	}
	rel, err := relative(p.Path)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hs {
		g := filepath.Join(h.Mount, rel)
		if h.V2 {
			errs = append(errs, set(g, "cpu.max", fmt.Sprintf("%d %d", p.Quota, p.Period)))
			continue
		}
		errs = append(errs, set(g, "cpu.cfs_period_us", strconv.FormatUint(p.Period, 10)),
			set(g, "cpu.cfs_quota_us", strconv.FormatUint(p.Quota, 10)))
	}
	return errors.Join(errs...)
}
