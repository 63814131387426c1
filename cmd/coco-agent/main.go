// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco-agent is PID 1 of the guest: it brings the machine up, serves the agent protocol on
// every transport that the machine has, and powers it off at the end.
package main

import (
	"os"
	"runtime/debug"
	"time"

	"github.com/coco-shim/coco/agent/boot"
	"github.com/coco-shim/coco/agent/nspace"
)

// The guest's memory is the pod's: the agent keeps its heap small and gives pages back. But not while a pod starts:
// a collection then costs more time than it finds memory.
const (
	gcPercentAtBoot = 400 // the first collection after 16 MiB
	gcPercent       = 50
	memoryLimit     = 24 << 20
	bootTakes       = 5 * time.Second // generously, from here to the first container's process
)

func main() {
	if len(os.Args) > 0 && os.Args[0] == nspace.PauseName {
		nspace.Pause()
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "-q" && os.Getpid() != 1 { // as the kernel runs its modprobe
		modprobe(os.Args[2:])
		return
	}
	debug.SetGCPercent(gcPercentAtBoot)
	debug.SetMemoryLimit(memoryLimit)
	time.AfterFunc(bootTakes, func() {
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory() // what the boot has left
	})
	if os.Getpid() != 1 {
		_, _ = os.Stderr.WriteString("coco-agent is the first process of a guest and does nothing elsewhere\n")
		os.Exit(2)
	}
	runInit()
}

// modprobe loads a module that the kernel asks for. The kernel sees by itself whether it is there then; the exit code
// is for people.
func modprobe(args []string) {
	debug.SetGCPercent(-1) // it ends soon
	if err := boot.Modprobe(args); err != nil {
		os.Exit(1)
	}
}
