// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco-rego evaluates a policy of Kata's agent (policy.rego in a pod's initdata) inside the guest. The agent
// starts it for pods that have such a policy, asks it about each request over its standard input and output
// (package policy/katarego/pipe), and denies everything once it has ended.
//
// It needs no file, no network and no privilege. Its memory is bounded; a policy that needs more ends it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/policy/katarego"
	"github.com/coco-shim/coco/policy/katarego/pipe"
)

// Memory of the program. Go takes address space in pieces of 64 MiB, which count towards the limit of data as a whole.
const (
	maxData    = 320 << 20 // bytes that it may map
	softMemory = 48 << 20  // bytes from which collecting goes on all the time
	gcPercent  = 40
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "coco-rego:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		return fmt.Errorf("it has no arguments: coco-agent starts it and speaks to it over standard input and output")
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(softMemory)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxData, Max: maxData}); err != nil {
		return fmt.Errorf("bound the memory: %w", err)
	}
	return pipe.Serve(os.Stdin, os.Stdout, func(text string) (pipe.Judge, error) {
		j, err := katarego.NewJudge(text)
		debug.FreeOSMemory() // the compiler's garbage
		return j, err
	})
}
