// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upper sends the host the files that the guest's only container has written to its root file system: the upper
// directory of its overlay, in the form of package upperwire. Engines without pods keep it, so that it is there when
// the container is started again, and for docker cp, diff, commit and export.
//
// The host opens a connection and writes one line. The answer is the line "ok" or a refusal (package gate); after "ok"
// the stream follows. The container has ended by then, or is frozen: the directory is read as it is.
package upper

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/upperwire"
)

var greeting = gate.Greeting{Word: contract.UpperWord, Max: 1}

// Server sends upper directories until it is closed.
type Server struct {
	*gate.Port
	find func() (string, error)
	busy sync.Mutex // held while a stream is sent
}

// New makes a Server. find returns the upper directory, or says why the host does not get it.
func New(find func() (string, error)) *Server {
	s := &Server{find: find}
	s.Port = gate.NewPort(s.send)
	return s
}

// send answers one connection.
func (s *Server) send(_ context.Context, c net.Conn) {
	var dir string
	err := greeting.Admit(c, func(uint32) (err error) {
		if !s.busy.TryLock() {
			return fmt.Errorf("the container's files are being sent already: %w", errdefs.ErrUnavailable)
		}
		if dir, err = s.find(); err != nil {
			s.busy.Unlock()
		}
		return err
	})
	if dir == "" {
		return
	}
	defer s.busy.Unlock()
	if err != nil {
		return
	}
	w := upperwire.NewWriter(c)
	last := upperwire.Entry{Kind: upperwire.End}
	if err := send(w, dir); err != nil {
		last = upperwire.Entry{Kind: upperwire.Failed, Text: err.Error()}
	}
	_ = w.Write(last) // the host sees a stream without an end
}

// send writes a directory and everything below it.
func send(w *upperwire.Writer, dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the container's writable layer: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	t := tree{out: w, links: map[uint64]uint64{}, attributes: make([]byte, maxAttributes)}
	return t.dir(fd, dir, "", &st, 0)
}
