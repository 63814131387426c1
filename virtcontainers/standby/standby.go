// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package standby is a node's directory of processes that wait for pods, each with a VM that has booted.
//
// Each has a directory of its own there, in which it writes who it is. When its VM is up, it says which pods it is for
// (a key) and listens on a socket. A client takes one by renaming that file, which succeeds once, and sends what the
// process needs to serve the pod. One process boots its VM at a time, under a lock that the kernel gives back. It first
// removes what killed ones left.
//
// The directory can be opened by its owner only. The package knows neither VMs nor pods.
package standby

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// Names in the directory, and in that of a process.
const (
	lockName    = ".lock"
	faultName   = ".failed-" // followed by a key
	processName = "process.json"
	metaName    = "meta.json"
	takenName   = "taken.json"
	endedName   = "ended.json"
	socketName  = "s"
)

const (
	lockPoll    = 100 * time.Millisecond
	takeTimeout = 5 * time.Second // from the rename to the message
	retry       = 10 * time.Minute
	maxMessage  = 64 << 10
	maxFiles    = 8
)

// Store is a directory of processes that wait.
type Store struct {
	Dir string // made when needed
}

// Meta is what a process says of itself when its VM is up.
type Meta struct {
	Key     string    `json:"key"`
	Made    time.Time `json:"made"`
	Summary string    `json:"summary"` // of the VM, for people
}

// Entry is a process in a list.
type Entry struct {
	Name    string
	Process state.Process
	Meta    Meta // zero while its VM boots, and when it was taken
}

// Lock waits until no other process boots a VM.
func (s Store) Lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of standby VMs: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.Dir, &st); err != nil {
		return nil, fmt.Errorf("directory of standby VMs: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s is not a directory that only its owner can open: chmod 700: %w", s.Dir,
			errdefs.ErrFailedPrecondition)
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock standby VMs: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { _ = f.Close() }, nil // nothing was written
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock standby VMs: %w", context.Cause(ctx)), f.Close())
		}
	}
}

// List lists the processes that live, and those that are gone and left something.
func (s Store) List() (live, dead []Entry, err error) {
	dirs, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list standby VMs: %w", err)
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		e := Entry{Name: d.Name()}
		if readJSON(filepath.Join(s.Dir, e.Name, processName), &e.Process) != nil || !e.Process.Lives() {
			dead = append(dead, e)
			continue
		}
		_ = readJSON(filepath.Join(s.Dir, e.Name, metaName), &e.Meta) // there may be none
		live = append(live, e)
	}
	sort.Slice(live, func(a, b int) bool { return live[a].Meta.Made.Before(live[b].Meta.Made) })
	return live, dead, nil
}

// Sweep removes what processes left that were killed. clean releases what the journal in a directory names. The caller
// has the lock.
func (s Store) Sweep(clean func(dir string) error) error {
	_, dead, err := s.List()
	errs := []error{err}
	for _, e := range dead {
		dir := filepath.Join(s.Dir, e.Name)
		if err := clean(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// Waiting counts the processes that wait for pods of a key; an empty one: for any.
func (s Store) Waiting(key string) (n int, err error) {
	live, _, err := s.List()
	for _, e := range live {
		if e.Meta.Key != "" && (key == "" || e.Meta.Key == key) {
			n++
		}
	}
	return n, err
}

// Fault notes why no VM of a key could be made ready; nil: one could.
func (s Store) Fault(key string, why error) error {
	name := filepath.Join(s.Dir, faultName+key)
	if why != nil {
		return os.WriteFile(name, []byte(why.Error()), 0o600)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Failed says that no VM of a key could be made ready lately; nil: it was not tried, or could.
func (s Store) Failed(key string) error {
	name := filepath.Join(s.Dir, faultName+key)
	st, err := os.Stat(name)
	if err != nil || time.Since(st.ModTime()) > retry || time.Since(st.ModTime()) < 0 {
		return nil //nolint:nilerr // without a note nothing is known to have failed
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return fmt.Errorf("making one ready failed at %s: %s", st.ModTime().UTC().Format(time.TimeOnly), text)
}

// Take hands text and files to a process that waits for pods of a key, and returns that process. An error of class
// not found says that none waits.
func (s Store) Take(key string, text []byte, files ...*os.File) (state.Process, error) {
	live, _, err := s.List()
	if err != nil {
		return state.Process{}, err
	}
	err = fmt.Errorf("none waits for pods like this: %w", errdefs.ErrNotFound)
	if why := s.Failed(key); why != nil {
		err = fmt.Errorf("%w, since %w", err, why)
	}
	for _, e := range live {
		if e.Meta.Key != key {
			continue
		}
		dir := filepath.Join(s.Dir, e.Name)
		if os.Rename(filepath.Join(dir, metaName), filepath.Join(dir, takenName)) != nil {
			continue // another client was quicker
		}
		if why := send(filepath.Join(dir, socketName), text, files); why != nil {
			err = fmt.Errorf("standby VM %s does not answer: %w", e.Name, why)
			continue
		}
		return e.Process, nil
	}
	return state.Process{}, err
}

func send(path string, text []byte, files []*os.File) error {
	if len(text) > maxMessage {
		return fmt.Errorf("the pod's message has %d bytes, more than %d", len(text), maxMessage)
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer c.Close()
	return errors.Join(c.SetDeadline(time.Now().Add(takeTimeout)), fdpass.Send(c, text, files...))
}

// newName is a name for a process's directory.
func newName() (string, error) {
	b := make([]byte, 6)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON makes a file that is whole when it is there.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
