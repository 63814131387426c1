// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upper sends the host the files that the guest's only container has written to its root file system: the upper
// directory of its overlay, in the form of package upperwire. Engines without pods keep it, so that it is there when
// the container is started again, and for docker cp, diff, commit and export.
//
// The host opens a connection and writes one line. The answer is the line "ok" or a refusal (package gate); after "ok"
// the stream follows. The number of the line says what the host wants: all files of a container that has ended or is
// frozen; all files of one that may run; or of such a one those that have changed since the last stream, which the host
// has taken.
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

var greeting = gate.Greeting{Word: contract.UpperWord, Max: contract.UpperChanges}

// Server sends upper directories until it is closed.
type Server struct {
	*gate.Port
	find func(running bool) (string, error)

	busy sync.Mutex // held while a stream is sent
	last memory     // guarded by busy; what the last stream had
}

// New makes a Server. find returns the upper directory, or says why the host does not get it: also because the
// container runs, unless running is set.
func New(find func(running bool) (string, error)) *Server {
	s := &Server{find: find}
	s.Port = gate.NewPort(s.send)
	return s
}

// send answers one connection.
func (s *Server) send(_ context.Context, c net.Conn) {
	var dir string
	var want uint32
	err := greeting.Admit(c, func(n uint32) (err error) {
		if !s.busy.TryLock() {
			return fmt.Errorf("the container's files are being sent already: %w", errdefs.ErrUnavailable)
		}
		want = n
		if dir, err = s.find(n != contract.UpperStill); err != nil {
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
	had := s.last
	s.last = nil
	if want != contract.UpperChanges {
		had = nil
	}
	w := upperwire.NewWriter(c)
	has, err := send(w, dir, had, want != contract.UpperStill)
	last := upperwire.Entry{Kind: upperwire.End}
	if err != nil {
		last = upperwire.Entry{Kind: upperwire.Failed, Text: err.Error()}
	}
	if w.Write(last) == nil && err == nil { // otherwise the host sees a stream without an end
		s.last = has
	}
}

// send writes a directory and everything below it but for the files that are as they were.
func send(w *upperwire.Writer, dir string, had memory, running bool) (memory, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the container's writable layer: %w", err)
	}
	t := tree{out: w, links: map[uint64]uint64{}, attributes: make([]byte, maxAttributes), had: had, running: running}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && running {
		err = t.remember(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t.has, t.dir(fd, dir, "", &st, place{})
}
