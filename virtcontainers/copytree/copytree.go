// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package copytree copies files, directories and symbolic links of the host to a guest, with modes, owners
// and times. A source is a descriptor, and only files beneath it are read (hostfs), whatever other programs rename and
// link in it meanwhile. A tree that changes while it is read is read again.
package copytree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// tries bounds how often a tree that changes while it is read is read again.
const tries = 8

const mib = 1 << 20

// ErrChanged says that a tree was another one when it was read than when it was looked at.
var ErrChanged = errors.New("it changes while it is copied")

// Sink takes files for the guest.
type Sink interface {
	CopyFile(ctx context.Context, req *agent.CopyFileRequest) error
}

// Target is where a tree goes, and how.
type Target struct {
	Sink     Sink
	Guest    string // path in the guest
	LimitMiB uint64 // larger trees are refused before anything is sent
	Removes  bool   // the guest's agent can remove files
	RawNames bool   // the guest's agent takes names that are not UTF-8
}

// Entry is one file, directory or symbolic link.
type Entry struct {
	Rel    string // path below the source; "" is the source
	Stat   unix.Stat_t
	Target string // of a link
}

func (e Entry) kind() uint32 { return e.Stat.Mode & unix.S_IFMT }

// same says whether the guest has an entry as it is now.
func (e Entry) same(o Entry) bool {
	a, b := e.Stat, o.Stat
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || e.Target != o.Target {
		return false
	}
	return e.kind() != unix.S_IFREG || a.Ino == b.Ino && a.Dev == b.Dev && a.Size == b.Size && a.Mtim == b.Mtim
}

// Mirror is a copy in the guest that can be brought up to date.
type Mirror struct {
	sent map[string]Entry // entries that the guest has, by Rel
}

// Copy copies a source once.
func Copy(ctx context.Context, source *os.File, to Target) error {
	m := &Mirror{}
	if err := m.Sync(ctx, source, to, Whole); err != nil {
		return err
	}
	return to.times(ctx, slices.Collect(maps.Values(m.sent)))
}

// times gives directories their times. Each new entry changes the time of its directory, so they get them last, the
// deepest first.
func (to Target) times(ctx context.Context, list []Entry) error {
	var dirs []Entry
	for _, e := range list {
		if e.kind() == unix.S_IFDIR {
			dirs = append(dirs, e)
		}
	}
	sort.Slice(dirs, func(a, b int) bool { return dirs[b].Rel < dirs[a].Rel }) // as in survey
	for _, e := range dirs {
		req, err := to.request(e)
		if err != nil {
			return err
		}
		req.MtimeNs = mtime(e)
		if err := to.Sink.CopyFile(ctx, req); err != nil {
			return fmt.Errorf("set the time of %q in the guest: %w", e.Rel, err)
		}
	}
	return nil
}

// View selects the entries of a source that are copied.
type View struct {
	// Skip, which may be nil, returns a predicate on paths below the source: entries for which it is true are left
	// out. It is called each time the source is read.
	Skip func(source *os.File) func(rel string) bool
	// OneFS refuses other file systems that are mounted below.
	OneFS bool
}

// Whole is all of a source, including other file systems mounted below it.
var Whole = View{}

// Sync makes the guest's copy equal to the source. It sends missing and changed entries: files and directories first,
// then the links in the topmost directory, a link named ..data as the last. Then it removes entries that are gone.
func (m *Mirror) Sync(ctx context.Context, source *os.File, to Target, v View) (err error) {
	if m.sent == nil {
		m.sent = map[string]Entry{}
	}
	for range tries {
		if err = m.once(ctx, source, to, v); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrChanged) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("the source %s was read %d times: %w: %w", show(source.Name()), tries, err,
		errdefs.ErrFailedPrecondition)
}

func (m *Mirror) once(ctx context.Context, source *os.File, to Target, v View) error {
	now, err := survey(ctx, source, to.LimitMiB, v)
	if err != nil {
		return err
	}
	if v.Skip != nil && torn(now) {
		return fmt.Errorf("%s leads to a state that was not there before: %w", contract.KubeletData, ErrChanged)
	}
	if err := to.check(now); err != nil {
		return err
	}
	for _, e := range m.inOrder(now) {
		if old, ok := m.sent[e.Rel]; ok && to.Removes && (old.kind() == unix.S_IFDIR) != (e.kind() == unix.S_IFDIR) {
			if err := m.remove(ctx, to, e.Rel); err != nil {
				return err
			}
		}
		if err := to.send(ctx, source, e, v); err != nil {
			return fmt.Errorf("copy %s into the guest: %w", show(path.Join(source.Name(), e.Rel)), err)
		}
		m.sent[e.Rel] = e
	}
	for _, rel := range m.stale(now) {
		if err := m.remove(ctx, to, rel); err != nil {
			return err
		}
	}
	return nil
}

// torn says whether kubelet swapped ..data between the choice of the omitted files and the reading of the link: the
// list has the new link without the state that it leads to. A guest that got it would have no file of the volume, and
// would take no more of that state, which it holds for the current one.
func torn(list []Entry) bool {
	target := ""
	there := map[string]bool{}
	for _, e := range list {
		there[e.Rel] = true
		if e.Rel == contract.KubeletData && e.kind() == unix.S_IFLNK {
			target = e.Target
		}
	}
	return target != "" && !there[target]
}

// remove removes an entry and all entries below it.
func (m *Mirror) remove(ctx context.Context, to Target, rel string) error {
	if to.Removes {
		req, err := to.request(m.sent[rel])
		if err != nil {
			return err
		}
		if err := to.Sink.CopyFile(ctx, &agent.CopyFileRequest{
			Path: req.Path, RawPath: req.RawPath,
			Remove: true,
		}); err != nil {
			return fmt.Errorf("remove %q in the guest: %w", rel, err)
		}
	}
	for sent := range m.sent {
		if sent == rel || strings.HasPrefix(sent, rel+"/") {
			delete(m.sent, sent)
		}
	}
	return nil
}

// inOrder lists the entries to be sent: files and directories, then the links that users see, and ..data as the last.
func (m *Mirror) inOrder(now []Entry) []Entry {
	var files, links, data []Entry
	for _, e := range now {
		if old, ok := m.sent[e.Rel]; ok && old.same(e) {
			continue
		}
		switch {
		case e.Rel == "" || strings.Contains(e.Rel, "/") || e.kind() != unix.S_IFLNK:
			files = append(files, e)
		case e.Rel == contract.KubeletData:
			data = append(data, e)
		default:
			links = append(links, e)
		}
	}
	return slices.Concat(files, links, data)
}

// stale lists the entries that the guest has and the host has not, links before directories. Entries below a stale
// directory are left out, since they are removed with it.
func (m *Mirror) stale(now []Entry) []string {
	there := map[string]bool{}
	for _, e := range now {
		there[e.Rel] = true
	}
	var links, others []string
	for rel, e := range m.sent {
		parent, isTop := path.Dir(rel), !strings.Contains(rel, "/")
		if isTop {
			parent = ""
		}
		_, sent := m.sent[parent]
		switch {
		case there[rel], sent && rel != "" && !there[parent]:
		case e.kind() == unix.S_IFLNK:
			links = append(links, rel)
		default:
			others = append(others, rel)
		}
	}
	slices.Sort(links)
	slices.Sort(others)
	return append(links, others...)
}
