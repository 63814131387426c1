// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco-trust fetches a pod's secrets from its key broker. It is a part of the guest image, and the agent starts
// it in pods that have secrets, with the connection on descriptor 3 and the TPM, where there is one, on descriptor 4.
// It runs as a user without privileges and opens nothing but connections with the broker. It writes nothing to the
// console: errors are in its answers.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/trust"
	"github.com/coco-shim/coco/trust/wire"
)

// Its memory is the pod's.
const (
	gcPercent   = 50
	memoryLimit = 12 << 20
)

func main() {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "coco-trust:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := confine(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(wire.Socket, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("descriptor %d is no socket: the agent of a guest starts this program", wire.Socket)
	}
	return trust.Run(context.Background(), os.NewFile(wire.Socket, "agent"), trust.Devices{
		TPM: func() io.ReadWriter { return os.NewFile(wire.TPM, "tpm") },
		API: func() *os.File { return os.NewFile(wire.API, "workload API") },
	})
}

// confine makes the kernel refuse new privileges by execve, and tracing of this process (PR_SET_DUMPABLE).
func confine() error {
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); e != 0 {
		return fmt.Errorf("give up new privileges: %w", e)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("give up core dumps: %w", err)
	}
	return nil
}
