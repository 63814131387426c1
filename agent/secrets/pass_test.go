// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/trust/wire"
)

// asTrust, in the environment, makes the test binary a coco-trust.
const asTrust = "COCO_TEST_AS_TRUST"

// TestIsCocoTrust is no test but the process that the tests below start: it writes its pid and the name of the
// container to each connection.
func TestIsCocoTrust(t *testing.T) {
	if os.Getenv(asTrust) == "" {
		return
	}
	var s wire.Setup
	conn := os.NewFile(wire.Socket, "agent")
	if err := wire.Read(conn, &s); err != nil || !s.Workload || wire.Write(conn, wire.Hello{}) != nil {
		os.Exit(1)
	}
	c, err := net.FileConn(os.NewFile(wire.API, "api"))
	if err != nil {
		os.Exit(3)
	}
	for {
		name := make([]byte, 100)
		n, files, err := fdpass.Recv(c.(*net.UnixConn), name, 1)
		if err != nil {
			os.Exit(0)
		}
		_, _ = files[0].WriteString(strconv.Itoa(os.Getpid()) + " " + string(name[:n]))
		_ = files[0].Close()
	}
}

// workloads returns a Store whose coco-trust is this binary, and the processes that it has started.
func workloads(t *testing.T) (*Store, func() []*reap.Child) {
	t.Helper()
	var mu sync.Mutex
	var started []*reap.Child
	s := New(Config{
		Setup: wire.Setup{TEE: "sample", Initdata: "x", Workload: true},
		Open:  func(context.Context, string) (string, error) { return "/nowhere", nil },
		Spawn: func(_ string, _ []string, attr *syscall.ProcAttr) (*reap.Child, error) {
			attr.Env, attr.Sys = []string{asTrust + "=1"}, nil // tests may not be root
			c, err := reaper().Spawn(os.Args[0], []string{"coco-trust", "-test.run=^TestIsCocoTrust$"}, attr)
			mu.Lock()
			defer mu.Unlock()
			started = append(started, c)
			return c, err
		},
		Dir: t.TempDir(),
	})
	t.Cleanup(s.Close)
	return s, func() []*reap.Child { mu.Lock(); defer mu.Unlock(); return slices.Clone(started) }
}

// pass passes a connection on, and returns what coco-trust writes to it.
func pass(t *testing.T, s *Store, name string) (pid, as string) {
	t.Helper()
	ours, theirs, err := fdpass.Pair("client", unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := s.Pass(t.Context(), name, theirs); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	b, err := io.ReadAll(ours)
	if err != nil {
		t.Fatal(err)
	}
	pid, as, _ = strings.Cut(string(b), " ")
	return pid, as
}

// coco-trust is started by the first connection and takes the others, too. When it has ended, the next connection
// starts another.
func TestConnectionsStartCocoTrust(t *testing.T) {
	s, started := workloads(t)
	if n := len(started()); n != 0 {
		t.Errorf("%d processes before the first connection", n)
	}
	first, as := pass(t, s, "a")
	if second, bs := pass(t, s, "b"); first != second || as != "a" || bs != "b" {
		t.Errorf("process %s has a connection of %q, %s one of %q", first, as, second, bs)
	}
	child := started()[0]
	if err := child.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-child.Done()
	if third, as := pass(t, s, "a"); third == first || as != "a" || len(started()) != 2 {
		t.Errorf("after its end, process %s of %d has a connection of %q", third, len(started()), as)
	}
	s.Close()
	<-started()[1].Done()
	s.turn <- nil // for the cleanup's Close
}

func TestAConnectionThatCannotBePassedOn(t *testing.T) {
	s, _ := workloads(t)
	h := <-s.turn // somebody else talks with coco-trust, which does not run yet
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Pass(ctx, "a", os.Stdin); err == nil {
		t.Error("Pass after the deadline succeeds")
	}
	s.turn <- h
}
