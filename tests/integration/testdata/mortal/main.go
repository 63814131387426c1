// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mortal is the first process of a guest whose agent dies at a chosen moment. It becomes the agent
// (/init.agent) and leaves a child behind that crashes the kernel, which has the same effect as the end of a guest's
// first process. The word test.die=PATTERN of the kernel's command line sets the moment: as soon as a path matches;
// "test.die=now" is before the agent has begun.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	agent = "/init.agent"
	// proc is a /proc of our own: the agent mounts its own and moves to another root, where the child does not follow.
	proc = "/mortal"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "watch" {
		watch(os.Args[2])
	}
	if err := os.Mkdir(proc, 0o700); err != nil {
		fmt.Println("mortal:", err)
	}
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		fmt.Println("mortal: mount:", err)
	}
	cmdline, _ := os.ReadFile(proc + "/cmdline")
	_, when, _ := strings.Cut(string(cmdline), "test.die=")
	when, _, _ = strings.Cut(strings.TrimSpace(when), " ")
	if when == "now" {
		crash()
	}
	cmd := exec.Command(proc+"/self/exe", "watch", when)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout, os.Stdout // there is no /dev/null yet
	if err := cmd.Start(); err != nil {
		fmt.Println("mortal: watch:", err)
	}
	fmt.Println("mortal:", unix.Exec(agent, []string{"/init"}, os.Environ()))
}

// watch looks for the path: file systems of the kernel tell nobody what they gain.
func watch(pattern string) {
	for {
		if found, _ := filepath.Glob(proc + "/1/root" + pattern); len(found) > 0 {
			crash()
		}
		time.Sleep(time.Millisecond)
	}
}

func crash() {
	if err := os.WriteFile(proc+"/sysrq-trigger", []byte("c"), 0); err != nil {
		fmt.Println("mortal: crash:", err)
	}
}
