// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// adopting is whether this program has called AdoptOrphans.
var adopting atomic.Bool

// AdoptOrphans makes this program the parent of what its descendants leave running: daemonised shims and VMMs become
// its children, not those of a PID 1 that may reap late. So everything that its tests start descends from it, and
// Leaks can tell the pods of other programs on this machine from those of the tests.
func AdoptOrphans() {
	if unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == nil {
		adopting.Store(true)
	}
}

// otherPods returns ids of the pods that other programs have started, and the names that are made of these ids. The
// lines of Traces with one of them are not about this program's pods. Without AdoptOrphans it returns none.
func otherPods() (names []string) {
	if !adopting.Load() {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		argv := strings.Split(string(cmd), "\x00")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if !isOurs(argv) || descends(pid, os.Getpid()) {
			continue
		}
		names = append(names, fmt.Sprintf("(pid %d)", pid))
		if id := argument(argv, "-id"); id != "" {
			sum := sha256.Sum256([]byte(argument(argv, "-namespace") + "\x00" + id))
			names = append(names, id, hex.EncodeToString(sum[:12]))
		}
	}
	return names
}

// isOurs says whether a command line is that of a process which coco starts for a pod.
func isOurs(argv []string) bool {
	switch name := filepath.Base(argv[0]); {
	case strings.HasPrefix(name, "containerd-shim-coco"), name == "virtiofsd":
		return true
	case name == "swtpm":
		return slices.ContainsFunc(argv, func(a string) bool { return strings.HasPrefix(a, "dir=/tpm,") })
	case strings.HasPrefix(name, "qemu-system"):
		return strings.HasPrefix(argument(argv, "-name"), "coco-")
	}
	return false
}

// argument returns the word after a flag, or "".
func argument(argv []string, flag string) string {
	if i := slices.Index(argv, flag); i >= 0 && i+1 < len(argv) {
		return argv[i+1]
	}
	return ""
}

// descends says whether a process is one of ancestor's descendants. A process that has ended is none.
func descends(pid, ancestor int) bool {
	for pid > 1 {
		_, parent, ok := status(pid)
		if !ok {
			return false
		}
		if parent == ancestor {
			return true
		}
		pid = parent
	}
	return false
}
