// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ownthread runs functions on threads of their own. Such a function may change properties of its thread that
// cannot be restored, like its namespaces, or start children whose parent-death signal follows that thread.
package ownthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Go runs fn in a goroutine on a thread that nothing else uses and that is destroyed afterwards. It
// is not the main thread, whose namespaces others see as those of the process.
func Go(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return // still locked: the thread ends
		}
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread() // another thread, since this one is taken
			close(locked)
			fn()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}
