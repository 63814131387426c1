// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package template keeps saved VMs. A template is the state of a guest that has booted and has not been spoken to: a
// pod that starts from one has its own copy of that state and skips the boot.
//
// Each template is a directory, named by the digest of all that it depends on (the key): the stream that the VMM wrote,
// and a description with the stream's digest. One maker at a time writes it in a directory aside, and a rename gives it
// its name. So a template is whole or absent, whenever a maker is killed; the next maker removes what the killed one
// left. The directories can be opened by their owner only, since the state has the guest's memory.
//
// The number of templates and their bytes are bounded, by the size of their file system too. The one that was used
// least recently goes first, and one that is older than a limit is not used any more. A make that failed is noted for a
// while, so that it is not tried for each VM. The package knows nothing of VMMs.
package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Names in a store's directory. A template's name is a key, which has no dot.
const (
	metaName  = "template.json"
	stateName = "state"
	asideName = ".new-"
	lockName  = ".lock"
	faultName = ".failed-" // followed by a key
)

const (
	schema    = 1
	maxMeta   = 64 << 10
	keyDigits = 2 * sha256.Size
)

// Store is a directory with templates.
type Store struct {
	Dir      string        // made when needed
	MaxCount int           // most templates
	MaxBytes int64         // most bytes of all states
	MaxAge   time.Duration // a template that is older is removed; 0: no limit
	MinFree  int64         // bytes: none is made where the file system has fewer
	Retry    time.Duration // for which a make that failed is not wanted again
}

// share of its file system that a store may take: the file system has the node's other files in memory too.
const share = 4

// Meta describes a template.
type Meta struct {
	Schema  int       `json:"schema"`
	Key     string    `json:"key"`
	Made    time.Time `json:"made"`
	Bytes   int64     `json:"bytes"`   // of the state
	SHA256  string    `json:"sha256"`  // of the state, hexadecimal
	Summary string    `json:"summary"` // of what it is of, for people
}

// Template is an open template. Close it.
type Template struct {
	Meta
	State *os.File // read-only, at its start
}

// ErrBusy is the error of Make when another process makes a template.
var ErrBusy = errors.New("another process makes a template")

// Key is the name of the template of what v describes: the digest of its JSON.
func Key(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("describe a template: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Open opens the template of a key and marks it as used. The error is errdefs.ErrNotFound where there is none, and says
// what is wrong with one that cannot be used. Its state is to be verified before it is relied on.
func (s Store) Open(key string) (*Template, error) {
	if !validKey(key) {
		return nil, fmt.Errorf("template %.80q: not a key: %w", key, errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.Dir, key)
	m, err := s.meta(key)
	if errdefs.IsNotFound(err) {
		if fault := s.fault(key); fault != nil {
			err = fmt.Errorf("%w, since %w", err, fault)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.expired(m); err != nil {
		return nil, fmt.Errorf("template %s %w: %w", short(key), err, errdefs.ErrNotFound)
	}
	f, err := os.Open(filepath.Join(dir, stateName))
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", short(key), err)
	}
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() != m.Bytes) {
		err = fmt.Errorf("the state has %d bytes, not the %d that were written: %w", st.Size(), m.Bytes,
			errdefs.ErrDataLoss)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("template %s: %w", short(key), err), f.Close())
	}
	touch(dir)
	return &Template{Meta: m, State: f}, nil
}

// touch notes a use. Only the order in which templates go depends on it. (The file system's own times lag by a tick.)
func touch(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now)
}

// expired says why the age of a template keeps it from being used; nil: it does not.
func (s Store) expired(m Meta) error {
	age := time.Since(m.Made)
	switch {
	case s.MaxAge <= 0:
		return nil
	case age > s.MaxAge:
		return fmt.Errorf("is older than %v", s.MaxAge)
	case age < -time.Minute: // how old it is cannot be told
		return fmt.Errorf("was made in the future, at %s: the host's clock was set back", m.Made.UTC().Format(time.RFC3339))
	}
	return nil
}

func (s Store) meta(key string) (m Meta, err error) {
	f, err := os.Open(filepath.Join(s.Dir, key, metaName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("template %s: there is none: %w", short(key), errdefs.ErrNotFound)
	}
	if err != nil {
		return m, fmt.Errorf("template %s: %w", short(key), err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	switch {
	case err != nil:
		return m, fmt.Errorf("template %s: description: %w: %w", short(key), err, errdefs.ErrDataLoss)
	case m.Schema != schema || m.Key != key:
		return m, fmt.Errorf("template %s: the description is of schema %d and key %.80q: %w", short(key), m.Schema, m.Key,
			errdefs.ErrDataLoss)
	}
	return m, nil
}

// Verify reads the state and compares its digest with the description.
func (t *Template) Verify(ctx context.Context) error {
	h := sha256.New()
	r := &until{ctx: ctx, r: io.NewSectionReader(t.State, 0, t.Bytes)}
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, r, make([]byte, 256<<10))
	if err == nil && n != t.Bytes {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("verify template %s: %w", short(t.Key), err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != t.SHA256 {
		return fmt.Errorf("verify template %s: the state has digest %.12s, not %.12s: %w", short(t.Key), got, t.SHA256,
			errdefs.ErrDataLoss)
	}
	return nil
}

// Close closes the state.
func (t *Template) Close() error { return t.State.Close() }

// until is a reader that ends with a context.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// Make makes the template of a key: save writes the state. A template that is there already and can be used stays, and
// made is false.
func (s Store) Make(ctx context.Context, key, summary string, save func(context.Context, *os.File) error) (
	made bool, err error,
) {
	if !validKey(key) {
		return false, fmt.Errorf("template %.80q: not a key: %w", key, errdefs.ErrInvalidArgument)
	}
	unlock, err := s.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	if t, err := s.Open(key); err == nil {
		return false, t.Close()
	}
	if err := s.sweep(); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.note(key, err)) }()
	if s.MaxBytes, err = s.room(); err != nil {
		return false, err
	}
	aside, err := os.MkdirTemp(s.Dir, asideName)
	if err != nil {
		return false, fmt.Errorf("make a template: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside)) }() // after the rename it is not there any more
	if err := write(ctx, aside, Meta{Schema: schema, Key: key, Summary: summary}, save); err != nil {
		return false, fmt.Errorf("make template %s: %w", short(key), err)
	}
	name := filepath.Join(s.Dir, key)
	if err := os.RemoveAll(name); err != nil { // one that cannot be used
		return false, err
	}
	if err := os.Rename(aside, name); err != nil {
		return false, fmt.Errorf("make template %s: %w", short(key), err)
	}
	touch(name)
	return true, s.shrink(key)
}

// write fills a directory with a template.
func write(ctx context.Context, dir string, m Meta, save func(context.Context, *os.File) error) error {
	f, err := os.OpenFile(filepath.Join(dir, stateName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := save(ctx, f); err != nil {
		return err
	}
	h := sha256.New()
	if m.Bytes, err = io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return err
	}
	if m.Bytes == 0 {
		return errors.New("the VMM has written nothing")
	}
	m.SHA256, m.Made = hex.EncodeToString(h.Sum(nil)), time.Now().UTC()
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, metaName), b, 0o600)
}

// sweep removes what killed makers left. The caller has the lock, so nobody writes there.
func (s Store) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.Dir, asideName+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	notes, err := filepath.Glob(filepath.Join(s.Dir, faultName+"*"))
	if err != nil {
		return err
	}
	for _, name := range notes {
		if st, err := os.Lstat(name); err == nil && !s.recent(st.ModTime()) {
			errs = append(errs, os.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// room is how many bytes the templates may have. The error says that the file system is too full for another one.
func (s Store) room() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil {
		return 0, fmt.Errorf("size of the file system of %s: %w", s.Dir, err)
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize //nolint:gosec // file systems are smaller
	if free < s.MinFree {
		return 0, fmt.Errorf("the file system of %s has %d MiB free, and %d are to stay: %w", s.Dir, free>>20,
			s.MinFree>>20, errdefs.ErrResourceExhausted)
	}
	return min(s.MaxBytes, all/share), nil
}

// recent reports whether a failure was so lately that the make is not tried again.
func (s Store) recent(at time.Time) bool {
	ago := time.Since(at)
	return ago >= 0 && ago < s.Retry
}

// fault says that making the template of a key failed lately; nil: it did not.
func (s Store) fault(key string) error {
	f, err := os.Open(filepath.Join(s.Dir, faultName+key))
	if err != nil {
		return nil // there is no note, or the next make removes it
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !s.recent(st.ModTime()) {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(f, maxMeta)) // a part of it is a reason too
	return fmt.Errorf("making it failed at %s: %s", st.ModTime().UTC().Format(time.TimeOnly), text)
}

// note writes down that making the template of a key failed, or removes such a note. A maker that was told to end has
// not failed.
func (s Store) note(key string, fault error) error {
	name := filepath.Join(s.Dir, faultName+key)
	if fault == nil {
		err := os.Remove(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if errors.Is(fault, context.Canceled) {
		return nil
	}
	return os.WriteFile(name, []byte(fault.Error()), 0o600)
}

// Wanted says why no process is to be started to make the template of a key: another one makes a template, or making
// this one failed lately. nil: one is to be.
func (s Store) Wanted(key string) error {
	if fault := s.fault(key); fault != nil {
		return fault
	}
	made, err := filepath.Glob(filepath.Join(s.Dir, asideName+"*"))
	if err != nil || len(made) == 0 {
		return err
	}
	unlock, err := s.lock() // a killed maker's directory stays until the next one
	if err != nil {
		return err
	}
	unlock()
	return nil
}

// lock takes the store's lock, and makes the store where it is missing. The kernel gives the lock back when its holder
// is killed.
func (s Store) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of templates: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.Dir, &st); err != nil {
		return nil, fmt.Errorf("directory of templates %s: %w", s.Dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("directory of templates %s is not one that only its owner can open: chmod 700: %w", s.Dir,
			errdefs.ErrFailedPrecondition)
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock templates: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock templates: %w: %w", ErrBusy, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // nothing was written
}

// Entry is a template in a list.
type Entry struct {
	Meta
	Used time.Time
	Err  error // why it cannot be used; nil: it can
}

// List lists the templates, the one that was used last first. A store that was never used is empty.
func (s Store) List() ([]Entry, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var out []Entry
	for _, e := range entries {
		if !validKey(e.Name()) {
			continue
		}
		m, err := s.meta(e.Name())
		if err == nil {
			err = s.expired(m)
		}
		m.Key = e.Name()
		info, ierr := e.Info()
		if errors.Is(ierr, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if ierr != nil {
			return nil, fmt.Errorf("list templates: %w", ierr)
		}
		out = append(out, Entry{m, info.ModTime(), err})
	}
	// slices.SortFunc costs 20 kB of the shim for a type as large as Entry.
	sort.Slice(out, func(a, b int) bool { return out[a].Used.After(out[b].Used) })
	return out, nil
}

// Remove removes a template. VMs that start from it at the moment go on. Removing one that is gone is
// errdefs.ErrNotFound.
func (s Store) Remove(key string) error {
	if !validKey(key) {
		return fmt.Errorf("template %.80q: not a key: %w", key, errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.Dir, key)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("template %s: there is none: %w", short(key), errdefs.ErrNotFound)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove template %s: %w", short(key), err)
	}
	return nil
}

// shrink removes templates until the bounds hold: first those that cannot be used, then the least recently used. The
// one of key stays.
func (s Store) shrink(key string) error {
	list, err := s.List()
	if err != nil {
		return err
	}
	rank := func(e Entry) int { // the ones to keep first
		switch {
		case e.Key == key:
			return 0
		case e.Err == nil:
			return 1
		}
		return 2
	}
	sort.SliceStable(list, func(a, b int) bool { return rank(list[a]) < rank(list[b]) })
	var errs []error
	var bytes int64
	for i, e := range list {
		bytes += e.Bytes
		if i > 0 && (e.Err != nil || i >= s.MaxCount || bytes > s.MaxBytes) {
			errs = append(errs, s.Remove(e.Key))
		}
	}
	return errors.Join(errs...)
}

func validKey(s string) bool {
	if len(s) != keyDigits {
		return false
	}
	b, err := hex.DecodeString(s)
	return err == nil && hex.EncodeToString(b) == s
}

// short is as much of a key as people need.
func short(key string) string { return key[:min(12, len(key))] }
