// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Pids returns the pids of a pod's shim and VMM; both carry the container's id in their arguments.
// A process that is not there is 0, and then the error says which.
func Pids(id string) (shim, vmm int, err error) {
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
			shim = pid
		case strings.HasPrefix(name, "qemu-system"):
			vmm = pid
		}
	}
	if shim == 0 || vmm == 0 {
		err = fmt.Errorf("pod %s: shim pid %d, vmm pid %d: not both running", id, shim, vmm)
	}
	return shim, vmm, err
}
