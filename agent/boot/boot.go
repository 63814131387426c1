// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package boot turns a process that the kernel started as PID 1 into a working user space: root,
// mounts, modules, entropy, clock, and power-off at the end. Each step is a function that
// the agent's main calls in order; none waits by sleeping. Package reap collects the children.
package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxSeed bounds the entropy taken in one call; the kernel's pool is 512 bytes.
const maxSeed = 4096

// AddEntropy mixes data into the kernel's random number generator and has it reseed itself. The host knows
// the data, so they are not credited: they cannot make the kernel believe that it is seeded.
func AddEntropy(data []byte) error { return addEntropy("/dev/random", data) }

func addEntropy(device string, data []byte) error {
	if len(data) == 0 || len(data) > maxSeed {
		return fmt.Errorf("reseed: %d bytes of entropy, want 1 to %d: %w", len(data), maxSeed, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil { // random(4): mixed in, not credited
		return fmt.Errorf("mix in: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), rndReseedCRNG, 0); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("reseed the random number generator: %w", err)
	}
	return nil
}

const rndReseedCRNG = 0x5207 // random(4), RNDRESEEDCRNG = _IO('R', 0x07)

// PowerOff syncs the disks and powers the machine off. It returns only on error.
func PowerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// ExpediteRCU makes the kernel's grace periods short, at the price of interrupts to the few
// processors that a guest has. Loading modules, unmounting and making containers otherwise consist
// mostly of waiting for them: 15 modules took 1.73 s, and 0.33 s with it (QEMU's instruction
// counter, kernel 6.12). The kernel does the same until it starts its first process.
func ExpediteRCU() error { return writeFile("/sys/kernel/rcu_expedited", "1") }

// Console opens the system console for messages.
func Console() (*os.File, error) {
	return os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
}

// KernelParam returns the value of a word `key=value` on the kernel command line; a bare word has
// the value "".
func KernelParam(key string) (string, bool) { return findParam(cmdline(), key) }

// cmdline is the kernel's command line, or nothing where /proc is not mounted.
func cmdline() string {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	return string(b)
}

func findParam(cmdline, key string) (value string, found bool) {
	for _, w := range strings.Fields(cmdline) {
		if k, v, _ := strings.Cut(w, "="); k == key {
			value, found = v, true // the last one counts
		}
	}
	return value, found
}

// moduleParams are the parameters that a command line has for a module, `module.param=value`. The kernel passes
// them to built-in code only; for a module its loader has to pass them.
func moduleParams(cmdline, module string) string {
	var params []string
	for _, w := range strings.Fields(cmdline) {
		name, _, _ := strings.Cut(w, "=")
		if m, _, ok := strings.Cut(name, "."); ok && canonical(m) == module {
			params = append(params, w[len(m)+1:])
		}
	}
	return strings.Join(params, " ")
}
