// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

// inNamespace gives a watch and a socket of a network namespace of their own.
func inNamespace(t *testing.T) (*Watch, *Conn) {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns)
	type result struct {
		w   *Watch
		c   *Conn
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			r.w, r.err = Subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
		}
		if r.err == nil {
			r.c, r.err = Open(5 * time.Second)
		}
		ch <- r
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _, _ = r.w.Close(), r.c.Close() })
	return r.w, r.c
}

// setLoopback brings the loopback, link 1, up or down.
func setLoopback(t *testing.T, c *Conn, up bool) {
	t.Helper()
	b := linkHeader(1)
	b[12] = unix.IFF_UP
	if up {
		b[8] = unix.IFF_UP
	}
	if err := c.Change(unix.RTM_SETLINK, 0, b); err != nil {
		t.Fatal(err)
	}
}

func TestWaitReturnsOnceForABurst(t *testing.T) {
	w, c := inNamespace(t)
	for i := range 2000 { // more than the socket holds
		setLoopback(t, c, i%2 == 0)
	}
	const quiet = 20 * time.Millisecond
	start := time.Now()
	if err := w.Wait(quiet, time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < quiet {
		t.Errorf("Wait() returned after %s, without a quiet time of %s", took, quiet)
	}
	second := make(chan error, 1)
	go func() { second <- w.Wait(quiet, time.Minute) }()
	select {
	case err := <-second:
		t.Fatalf("a second Wait() without a change returned: %v", err)
	case <-time.After(5 * quiet):
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := <-second; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait() after Close = %v, want closed", err)
	}
}

func TestWaitDoesNotWaitForQuietForEver(t *testing.T) {
	w, c := inNamespace(t)
	setLoopback(t, c, true)
	if err := w.Wait(time.Hour, 10*time.Millisecond); err != nil {
		t.Error(err)
	}
}
