// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/caller"
	"github.com/coco-shim/coco/api/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connection is what coco-trust gets.
type connection struct {
	name string
	file *os.File
}

// start returns a Server and what coco-trust gets.
func start(t *testing.T, cfg Config) (*Server, chan connection) {
	t.Helper()
	got := make(chan connection)
	if cfg.Pass == nil {
		cfg.Pass = func(ctx context.Context, name string, f *os.File) error {
			fd, err := unix.Dup(int(f.Fd()))
			if err != nil {
				return err
			}
			own := os.NewFile(uintptr(fd), "connection")
			select {
			case got <- connection{name, own}:
				return nil
			case <-ctx.Done():
				return errors.Join(ctx.Err(), own.Close())
			}
		}
	}
	cfg.Log, cfg.Dir = slog.New(slog.DiscardHandler), shortDir(t)
	s, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, got
}

// shortDir makes a directory whose name fits into the address of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// next connects, and returns as whose the connection arrives at coco-trust. It must be the same connection.
func next(t *testing.T, got chan connection, network, address string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := <-got
	defer n.file.Close()
	if _, err := n.file.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("another connection was passed on: %v", err)
	}
	return n.name
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// A connection over a socket is that of the socket's container.
func TestSocketsBelongToContainers(t *testing.T) {
	s, got := start(t, Config{Names: []string{"a", "b"}})
	for _, name := range []string{"a", "b", "a"} {
		if as := next(t, got, "unix", s.Socket(name)); as != name {
			t.Errorf("a connection over the socket of %s is that of %q", name, as)
		}
		if st, err := os.Stat(s.Socket(name)); err != nil || st.Mode().Perm() != 0o666 {
			t.Errorf("the socket of %s: %v, %v", name, st, err)
		}
	}
	if st, err := os.Stat(filepath.Dir(s.Socket("a"))); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the sockets: %v, %v", st, err)
	}
	if len(s.listeners) != 2 {
		t.Errorf("there are %d listeners, want no port", len(s.listeners))
	}
}

// A connection over the port is that of its container if the policy has something for it, else of a stranger.
func TestThePortTellsCallersApart(t *testing.T) {
	type found struct {
		id  string
		err error
	}
	var at atomic.Pointer[found]
	port := freePort(t)
	s, got := start(t, Config{
		Names: []string{"a"}, Port: port,
		Container: func(*net.TCPConn) (string, error) { f := at.Load(); return f.id, f.err },
		Name:      func(id string) string { return map[string]string{"id-a": "a"}[id] },
	})
	address := s.listeners[1].Addr().String()
	if !strings.HasPrefix(address, "127.0.0.1:") {
		t.Fatalf("the port is of %s", address)
	}
	for _, tc := range []struct {
		found
		want string
	}{
		{found{"id-a", nil}, "a"},
		{found{"id-b", nil}, contract.Stranger},
		{found{"", caller.ErrUnknown}, contract.Stranger},
		{found{"id-a", errors.New("netlink")}, contract.Stranger},
	} {
		at.Store(&tc.found)
		if as := next(t, got, "tcp4", address); as != tc.want {
			t.Errorf("container %q (%v) is %q, want %q", tc.id, tc.err, as, tc.want)
		}
	}
}

// After an error nothing listens.
func TestWhatCannotBeOpened(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := shortDir(t)
	_, err = Listen(context.Background(), Config{
		Dir: dir, Names: []string{"a"}, Port: l.Addr().(*net.TCPAddr).AddrPort().Port(),
	})
	if err == nil || !strings.Contains(err.Error(), "workload API") {
		t.Errorf("a port in use: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// When coco-trust cannot be started, connections are closed, and the agent goes on.
func TestWithoutCocoTrust(t *testing.T) {
	s, _ := start(t, Config{
		Names: []string{"a"}, Pass: func(context.Context, string, *os.File) error { return errors.New("no such part") },
	})
	for range 2 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", s.Socket("a"))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("Read = %d, %v", n, err)
		}
		_ = c.Close()
	}
	if m := s.Mount("a"); m.Source != s.Socket("a") || m.Destination != contract.WorkloadSocket {
		t.Errorf("Mount = %+v", m)
	}
}

// Close does not wait for a coco-trust that takes nothing.
func TestCloseWhileAConnectionWaits(t *testing.T) {
	s, _ := start(t, Config{Names: []string{"a"}})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", s.Socket("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s.listeners = nil // for the cleanup's Close
}
