// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package workload accepts the connections of containers to the workload API and passes them on to coco-trust, each
// with the name in the policy of its container. So coco-trust, which parses what containers send, needs no rights to
// open anything, and the agent parses nothing of it.
//
// Each container that may ask for anything has a Unix socket of its own, which the agent mounts into it: its
// connections are that container's. If the policy has a port, a connection to it is that of the container whose process
// opened it (package caller). A connection of anybody else is passed on as that of a Stranger, and is refused.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
)

// Config says who may connect where.
type Config struct {
	Dir   string   // of the sockets; it must be the guest's own
	Names []string // in the policy, of the containers that may ask for anything
	Port  uint16   // of the loopback address; 0: none
	// Container returns the id of the container that has opened a connection to the port.
	Container func(*net.TCPConn) (id string, err error)
	// Name returns the name in the policy of a container that may ask for anything, else "".
	Name func(id string) string
	// Pass sends a connection to coco-trust, with the name in the policy of its container or contract.Stranger.
	Pass func(ctx context.Context, name string, c *os.File) error
	Log  *slog.Logger
}

// Server listens from Listen to Close.
type Server struct {
	cfg       Config
	listeners []net.Listener
	life      context.Context
	end       context.CancelFunc
	wg        sync.WaitGroup
}

// passTimeout bounds the start of coco-trust, and the wait until it takes a connection.
const passTimeout = 30 * time.Second

// Listen opens the sockets, and the port if there is one, and passes their connections on. After an error none is open.
func Listen(ctx context.Context, cfg Config) (_ *Server, err error) {
	s := &Server{cfg: cfg}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			s.end()
			err = errors.Join(err, s.closeListeners())
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("workload API: %w", err)
	}
	names := map[net.Listener]string{}
	for _, name := range cfg.Names {
		l, err := listenUnix(ctx, s.Socket(name))
		if err != nil {
			return nil, fmt.Errorf("workload API: socket of container %s: %w", name, err)
		}
		s.listeners, names[l] = append(s.listeners, l), name
	}
	if cfg.Port != 0 {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(cfg.Port))))
		if err != nil {
			return nil, fmt.Errorf("workload API: %w", err)
		}
		s.listeners = append(s.listeners, l)
	}
	for _, l := range s.listeners {
		s.wg.Go(func() { s.serve(l, names[l]) })
	}
	return s, nil
}

// Socket is the path of a container's socket in the guest.
func (s *Server) Socket(name string) string { return filepath.Join(s.cfg.Dir, name+".sock") }

// Mount is the mount by which a container gets its socket.
func (s *Server) Mount(name string) specs.Mount {
	return specs.Mount{
		Destination: contract.WorkloadSocket, Type: "bind", Source: s.Socket(name),
		Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
	}
}

// listenUnix opens a socket to which any user of its container may connect.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close closes the sockets and waits until no connection is being passed on.
func (s *Server) Close() error {
	s.end()
	err := s.closeListeners()
	s.wg.Wait()
	return err
}

func (s *Server) closeListeners() (err error) {
	for _, l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// acceptPause follows an error of accept that is not the listener's end: the guest has too many open files.
const acceptPause = 100 * time.Millisecond

// serve passes on the connections to a listener: a socket's with its container's name, the port's with that of the
// container at the other end.
func (s *Server) serve(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.cfg.Log.Warn("workload API: accept", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		of := name
		if t, ok := c.(*net.TCPConn); ok {
			of = s.caller(t)
		}
		if err := s.pass(c, of); err != nil {
			s.cfg.Log.Warn("workload API: a connection is lost", "container", of, "error", err)
		}
	}
}

// caller names the container at the other end of a connection to the port.
func (s *Server) caller(c *net.TCPConn) string {
	id, err := s.cfg.Container(c)
	name := ""
	if err == nil {
		name = s.cfg.Name(id)
	}
	if name == "" {
		s.cfg.Log.Info("workload API: a stranger", "from", c.RemoteAddr(), "container", id, "error", err)
		return contract.Stranger
	}
	return name
}

// pass sends a connection to coco-trust, and closes it here.
func (s *Server) pass(c net.Conn, name string) error {
	defer c.Close()
	f, err := c.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(s.life, passTimeout)
	defer cancel()
	return s.cfg.Pass(ctx, name, f)
}
