// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// deserted is called each time that the last client disconnects, and not while one is connected.
func TestDesertedWhenTheLastClientGoes(t *testing.T) {
	deserted := make(chan struct{}, 10)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	callers := newClients(time.Hour, func() { deserted <- struct{}{} })
	defer callers.stop()
	a := listener{l, newAnswers(), callers}
	connect := func() (ours, theirs net.Conn) {
		t.Helper()
		theirs, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if ours, err = a.Accept(); err != nil {
			t.Fatal(err)
		}
		return ours, theirs
	}
	hangUp := func(ours, theirs net.Conn) {
		t.Helper()
		_ = theirs.Close()
		_ = ours.Close()
		_ = ours.Close() // a server may close twice
	}

	first, itsClient := connect()
	second, itsOther := connect()
	hangUp(first, itsClient)
	if len(deserted) != 0 {
		t.Fatal("deserted while a client is connected")
	}
	hangUp(second, itsOther)
	if len(deserted) != 1 {
		t.Fatalf("told %d times that nobody is connected, want once", len(deserted))
	}
	hangUp(connect())
	if len(deserted) != 2 {
		t.Errorf("told %d times that nobody is connected, want twice", len(deserted))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
}

// A client that connects need not ask for anything: a containerd that was killed before its first call does so when it
// is back.
func TestDesertedWhenNobodyAsks(t *testing.T) {
	for _, connected := range []bool{false, true} {
		deserted := make(chan struct{})
		callers := newClients(10*time.Millisecond, func() { close(deserted) })
		if connected {
			callers.come()
		}
		select {
		case <-deserted:
		case <-time.After(10 * time.Second):
			t.Errorf("client connected: %v: nobody was told that nobody asks", connected)
		}
		callers.stop()
	}
}

// The end waits for clients to hang up by themselves, but not for ever.
func TestClientsMayHangUp(t *testing.T) {
	c := newClients(time.Hour, func() {})
	defer c.stop()
	c.wait(t.Context()) // nobody is there
	c.come()
	c.come()
	left := make(chan struct{})
	go func() {
		defer close(left)
		c.wait(context.Background())
	}()
	c.leave()
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	c.wait(short)
	if short.Err() == nil {
		t.Error("a client that is there is not waited for")
	}
	c.leave()
	<-left
}
