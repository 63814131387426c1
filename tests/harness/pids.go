// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pids returns the pids of a pod's shim and VMM; both carry the container's id in their arguments.
// A process that is not there is 0, and then the error says which.
func Pids(id string) (shim, vmm int, err error) {
	var shims []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmd, rerr := os.ReadFile(filepath.Join(dir, "cmdline"))
		if rerr != nil || !strings.Contains(string(cmd), id) {
			continue
		}
		argv := strings.Split(string(cmd), "\x00")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		switch name := filepath.Base(argv[0]); {
		case strings.HasPrefix(name, "containerd-shim-coco") && !strings.Contains(string(cmd), "\x00launch\x00"):
			shims = append(shims, pid)
		case strings.HasPrefix(name, "qemu-system"):
			vmm = pid
		}
	}
	for _, pid := range shims { // what it has forked is called like it until it executes something
		if _, parent, ok := status(pid); ok && !slices.Contains(shims, parent) {
			shim = pid
		}
	}
	if shim == 0 || vmm == 0 {
		err = fmt.Errorf("pod %s: shim pid %d, vmm pid %d: not both running", id, shim, vmm)
	}
	return shim, vmm, err
}

// status returns a process's state and its parent.
func status(pid int) (state string, parent int, ok bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false // it has ended meanwhile
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 {
		return "", 0, false
	}
	parent, _ = strconv.Atoi(f[1])
	return f[0], parent, true
}

// Children returns the pids of a process's living children.
func Children(parent int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if state, p, ok := status(pid); ok && p == parent && state != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}
