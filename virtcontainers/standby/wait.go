// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standby

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// Place is a process's directory in a store.
type Place struct {
	Name string
	Dir  string
}

// Register makes a directory for this process. The caller has the lock.
func (s Store) Register() (p Place, err error) {
	self, err := state.Identify(os.Getpid())
	if err != nil {
		return p, err
	}
	if p.Name, err = newName(); err != nil {
		return p, err
	}
	p.Dir = filepath.Join(s.Dir, p.Name)
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		return p, err
	}
	return p, writeJSON(filepath.Join(p.Dir, processName), self)
}

// Listener is where a client's message comes.
type Listener struct {
	*net.UnixListener
	place Place
}

// Announce says which pods this process waits for.
func (p Place) Announce(m Meta) (*Listener, error) {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(p.Dir, socketName), Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for a pod: %w", err)
	}
	if err := writeJSON(filepath.Join(p.Dir, metaName), m); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Listener{l, p}, nil
}

// Message is what a client sends: text and files.
type Message struct {
	Text  []byte
	Files []*os.File
}

// Wait waits for a client's message. It ends with ctx, when ended is closed, and when check, which is called at each
// interval, returns an error. The listener is closed then.
func (l *Listener) Wait(ctx context.Context, ended <-chan struct{}, interval time.Duration, check func() error) (
	Message, error,
) {
	type result struct {
		m   Message
		err error
	}
	came := make(chan result, 1)
	go func() { // ends with the listener
		m, err := l.receive()
		came <- result{m, err}
	}()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		var why error
		select {
		case r := <-came:
			return r.m, errors.Join(r.err, l.Close())
		case <-ended:
			why = errors.New("the VM has ended")
		case <-ctx.Done():
			why = context.Cause(ctx)
		case <-tick.C:
			if _, err := os.Stat(filepath.Join(l.place.Dir, metaName)); err == nil {
				why = check()
			} else if l.abandoned() {
				why = errors.New("it was taken for a pod that did not come")
			}
		}
		if why == nil {
			continue
		}
		err := l.Close()
		if r := <-came; r.err == nil { // a client was quicker
			return r.m, err
		}
		return Message{}, errors.Join(why, err)
	}
}

// abandoned says that the client who took this process has sent nothing for a while.
func (l *Listener) abandoned() bool {
	st, err := os.Stat(filepath.Join(l.place.Dir, takenName))
	var dir os.FileInfo
	if err == nil {
		dir, err = os.Stat(l.place.Dir)
	}
	// The rename has changed the directory's time, not the file's.
	return err != nil || st.Mode().IsRegular() && time.Since(dir.ModTime()) > takeTimeout
}

func (l *Listener) receive() (Message, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return Message{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(takeTimeout)); err != nil {
		return Message{}, err
	}
	buf := make([]byte, maxMessage)
	n, files, err := fdpass.Recv(c, buf, maxFiles)
	if err == nil && n == 0 {
		err = errors.New("the client sent nothing")
	}
	return Message{buf[:n], files}, err
}
