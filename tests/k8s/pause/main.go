// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command pause waits for its end and reaps orphans. It is the program of the pause image, for pods under runc. Pods
// under coco have no such process: the VM stands for the pod.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
