// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upper brings back what a container has written to its root file system: from the guest, which has it on a
// disk that only the guest can read, to the upper directory of the overlay that the engine made for the container.
// There docker commit, diff, cp and export find it, and the next start makes a layer of it.
//
// The guest is not trusted. Its stream (package upperwire) is unpacked into a new directory beside the upper one,
// .coco-upper, beneath one descriptor. When the stream is refused or breaks off, that directory is removed and the
// upper one is as it was. A complete directory gets the name "ready". Then it is merged: entry by entry, by renames
// in one file system. A merge that was interrupted goes on when the container is started the next time (Finish).
//
// The upper directory itself stays the same directory, because the engine may have it mounted. The mount is refreshed.
package upper

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/upperwire"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Names of directories. The first one is beside the upper directory, the others are in it.
const (
	asideName = ".coco-upper"
	newName   = "new"   // a stream is being unpacked
	readyName = "ready" // the files of a whole stream that are still to be merged
	trashName = "trash" // entries of the upper directory that were replaced
)

// Limits bound a guest's stream.
type Limits = upperwire.Limits

// MaxEntries is how many entries an upper directory may have to be brought back.
const MaxEntries = 500_000

// Dirs are the directories of a container's overlay on the host.
type Dirs struct {
	Upper     string
	Lower     []string // the topmost first
	Merged    string   // where the engine may have mounted the overlay; "": nowhere
	UserXattr bool     // the overlay keeps its marks in user.overlay.*
}

// Layer is the writable layer of a container. Its methods may be called from several goroutines.
type Layer struct {
	dirs Dirs
	seed maphash.Seed

	grace time.Duration // for work whose time is over
	turn  chan struct{} // holds one while there is work
	fate  sync.Mutex    // held for moments only
	stuck bool          // guarded by fate; the work has been given up

	mu      sync.Mutex      // held while files are brought back
	brought map[uint64]bool // guarded by mu; every path that was brought back in the life of this VM, hashed
	whole   bool            // guarded by mu; the last stream was merged

	since int64             // guarded by mu; when the container was started, in nanoseconds
	ours  map[uint64]uint64 // guarded by mu; files that the guest has: paths, hashed, and what they were, hashed
}

// New makes the handle of a writable layer.
func New(d Dirs) *Layer {
	return &Layer{dirs: d, seed: maphash.MakeSeed(), turn: make(chan struct{}, 1), grace: grace}
}

// Report counts the files that were brought back.
type Report struct {
	Entries int
	Skipped []string // names that the guest left out and what they are, the first 16
	More    int      // how many more it left out
}

// Knows reports whether the last stream was merged: the guest may leave out what that had.
func (l *Layer) Knows() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.whole
}

// Bring reads a guest's stream and merges what it has into the upper directory. The guest sends all that the container
// has written since its start: what an earlier call brought and is not in the stream is removed again.
func (l *Layer) Bring(from io.Reader, most Limits) (_ Report, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = false
	if err := finish(l.dirs); err != nil {
		return Report{}, err
	}
	in, err := upperwire.NewReader(from, most)
	if err != nil {
		return Report{}, err
	}
	aside, err := openAside(l.dirs.Upper)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, aside.end(err)) }()
	r := receiver{
		opaque: opaqueMark(l.dirs), seed: l.seed, links: map[uint64]string{}, names: map[uint64]bool{}, before: l.brought,
		stamps: map[uint64]uint64{},
	}
	if r.root, err = aside.make(newName); err != nil {
		return Report{}, err
	}
	defer r.root.Close()
	if err := r.receive(in); err != nil {
		return Report{}, err
	}
	if err := aside.rename(newName, readyName); err != nil {
		return Report{}, err
	}
	m := merger{dirs: l.dirs, aside: aside, seed: l.seed, before: l.brought, now: r.names}
	if err := m.merge(); err != nil {
		return Report{}, err
	}
	l.brought, l.whole = r.names, true
	for hash, stamp := range r.stamps {
		l.note(hash, stamp)
	}
	if l.since != 0 { // an engine's changes are looked for
		if err := l.noteDirs(); err != nil {
			return Report{}, err
		}
	}
	report := Report{len(r.names), r.skipped, r.left}
	if l.dirs.Merged == "" {
		return report, nil
	}
	return report, refresh(l.dirs.Merged)
}

// Finish completes a merge that was interrupted, and removes our other files beside the upper directory.
func Finish(d Dirs) error { return finish(d) }

func finish(d Dirs) error {
	name := filepath.Join(filepath.Dir(d.Upper), asideName)
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	a, err := openDir(name)
	if err != nil {
		return err
	}
	aside := &aside{name, a}
	if _, err = os.Lstat(filepath.Join(name, readyName)); err == nil {
		m := merger{dirs: d, aside: aside}
		err = m.merge()
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, aside.end(err))
}

func opaqueMark(d Dirs) string {
	if d.UserXattr {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

// aside is the directory beside the upper one.
type aside struct {
	name string
	dir  *os.File
}

// openAside makes it. Only root can look into it.
func openAside(upper string) (*aside, error) {
	name := filepath.Join(filepath.Dir(upper), asideName)
	if err := os.Mkdir(name, 0o700); err != nil {
		return nil, err
	}
	dir, err := openDir(name)
	if err != nil {
		return nil, errors.Join(err, os.Remove(name))
	}
	a := &aside{name, dir}
	trash, err := a.make(trashName)
	if err != nil {
		return nil, errors.Join(err, a.end(nil))
	}
	return a, trash.Close()
}

// make makes a directory in it.
func (a *aside) make(name string) (*os.File, error) {
	if err := unix.Mkdirat(int(a.dir.Fd()), name, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(a.name, name), Err: err}
	}
	return a.open(name)
}

func (a *aside) open(name string) (*os.File, error) {
	return hostfs.Beneath(a.dir, name, unix.O_RDONLY|unix.O_DIRECTORY, false)
}

func (a *aside) rename(from, to string) error {
	return os.NewSyscallError("rename", unix.Renameat(int(a.dir.Fd()), from, int(a.dir.Fd()), to))
}

// end removes it. A merge that failed leaves it: the next start of the container goes on with it.
func (a *aside) end(failed error) error {
	err := a.dir.Close()
	if failed != nil {
		if _, serr := os.Lstat(filepath.Join(a.name, readyName)); serr == nil {
			return errors.Join(err, fmt.Errorf("the rest of the container's files are in %s until it is started again", a.name))
		}
	}
	return errors.Join(err, os.RemoveAll(a.name))
}

// openDir opens a directory of the engine's, whose path is trusted.
func openDir(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("directory of the container's files: %w", err)
	}
	return f, nil
}
