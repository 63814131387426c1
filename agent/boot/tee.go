// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Confidential reports whether the guest runs in a TEE, as the kernel has detected from the processor: a TD has a CPU
// flag, an SNP guest the platform device of its security processor. Both are built into the kernel. An unreadable file
// counts as a TEE. root is the root of the file system, "/".
func Confidential(root string) bool {
	if _, err := os.Lstat(filepath.Join(root, "sys/bus/platform/devices/sev-guest")); err == nil {
		return true
	}
	if _, err := os.Lstat(filepath.Join(root, "sys/bus/platform/devices")); err != nil {
		return true
	}
	f, err := os.Open(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return true
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if flags, ok := strings.CutPrefix(sc.Text(), "flags"); ok {
			return slices.Contains(strings.Fields(flags), "tdx_guest") // all processors are alike
		}
	}
	return true
}
