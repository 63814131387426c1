// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package devnode lists the device nodes of the guest for privileged containers: privileged means
// everything that the guest has, and nothing of the host's.
package devnode

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// made are the device nodes that a runtime makes in every container by itself, and directories of the
// container's own mounts.
var (
	made  = []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
	other = []string{"pts", "shm", "mqueue", "fd", "hugepages", "virtio-ports"}
	// agents are the agent's alone: the guest's memory, its processor's ports, and the TPM that speaks for the guest.
	agents = []string{"mem", "kmem", "port", "tpm0", "tpmrm0"}
)

// AllAllowed says whether a specification lets a container use every device, which makes it a
// privileged one.
func AllAllowed(s *specs.Spec) bool {
	res := s.Linux.Resources
	return res != nil && slices.ContainsFunc(res.Devices, func(d specs.LinuxDeviceCgroup) bool {
		return d.Allow && (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil &&
			strings.Contains(d.Access, "m")
	})
}

// Add puts the device nodes below root (/dev) into the specification, but for those that it has. Of a closed guest,
// serial lines are not among them, since the host reads their output.
func Add(s *specs.Spec, root string, closed bool) error {
	list, err := List(root)
	if err != nil {
		return err
	}
	for _, d := range list {
		if closed && serial(d) {
			continue
		}
		if !slices.ContainsFunc(s.Linux.Devices, func(h specs.LinuxDevice) bool { return filepath.Clean(h.Path) == d.Path }) {
			s.Linux.Devices = append(s.Linux.Devices, d)
		}
	}
	return nil
}

// serial says whether d is a serial line or the console: majors 4 (from 64 on), 229 (hvc) and 5:1.
func serial(d specs.LinuxDevice) bool {
	return d.Type == "c" && (d.Major == 4 && d.Minor >= 64 || d.Major == 229 || d.Major == 5 && d.Minor == 1)
}

// List returns the device nodes below root as they appear below /dev. The ports on which the agent
// talks with the host are not among them: reading from one would take the agent's requests away.
func List(root string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if slices.Contains(other, name) {
				return fs.SkipDir
			}
			return nil
		}
		if slices.Contains(made, name) || slices.Contains(agents, name) || strings.HasPrefix(name, "vport") ||
			e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		d := specs.LinuxDevice{
			Path: filepath.Join("/dev", name), Type: "b",
			Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid,
		}
		if e.Type()&fs.ModeCharDevice != 0 {
			d.Type = "c"
		}
		mode := fs.FileMode(st.Mode & 0o777)
		d.FileMode = &mode
		out = append(out, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the guest's devices: %w", err)
	}
	return out, nil
}
