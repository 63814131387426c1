// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/txn"
)

// Node is this host.
type Node struct {
	Prefix  string
	Links   string // directory for links to the programs of the current version, for people and for ctr
	Engines []engine.Engine
	Disk    *txn.Disk
	Pods    func() ([]Pod, error)
	Log     io.Writer // one line for each step that changes something
}

// New returns the host itself.
func New(prefix string, log io.Writer) *Node {
	return &Node{
		Prefix: prefix, Links: "/usr/local/bin", Log: log,
		Disk: &txn.Disk{Journal: filepath.Join(prefix, "state", "journal.json")},
		Pods: func() ([]Pod, error) { return RunningPods(prefix) },
	}
}

// Record is what an installation remembers.
type Record struct {
	Current  string            `json:"current"`  // hash of the version that the plain handlers have
	Versions []string          `json:"versions"` // hashes of all that have handlers
	Engines  []string          `json:"engines"`
	Aliases  map[string]string `json:"aliases,omitempty"`
	Dirs     []string          `json:"dirs,omitempty"`  // directories outside of PREFIX that it made
	Links    []string          `json:"links,omitempty"` // links outside of PREFIX that it made
	Settings json.RawMessage   `json:"settings,omitempty"`
}

func (n *Node) recordPath() string { return filepath.Join(n.Prefix, "state", "installed.json") }

// Installed reads the record, nil if coco is not installed.
func (n *Node) Installed() (*Record, error) {
	f, err := n.Disk.Read(n.recordPath())
	if err != nil || f == nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(f.Data, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", n.recordPath(), err)
	}
	return &r, nil
}

// lock keeps a second run out. It locks the directory above PREFIX, which stays.
func (n *Node) lock() (unlock func(), err error) {
	dir := filepath.Join("/", n.Disk.Root, filepath.Dir(n.Prefix))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another coco node runs: %s is locked: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func (n *Node) say(format string, args ...any) { fmt.Fprintf(n.Log, format+"\n", args...) }

// hooks are what a transaction asks the engines.
func (n *Node) hooks() txn.Hooks {
	return txn.Hooks{
		Verify: func(ctx context.Context) error {
			for _, e := range n.Engines {
				if err := e.Verify(ctx); err != nil {
					return err
				}
			}
			return nil
		},
		Activate: func(ctx context.Context, names []string) error {
			for _, e := range n.Engines {
				if !slices.Contains(names, e.Name()) {
					continue
				}
				n.say("restart %s, by %s; running pods go on", e.Name(), e.How())
				if err := e.Restart(ctx); err != nil {
					return err
				}
			}
			return nil
		},
		InUse: n.inUse,
	}
}

// inUse says why a version must stay.
func (n *Node) inUse(dir string) string {
	pods, err := n.Pods()
	if err != nil {
		return err.Error()
	}
	for _, p := range pods {
		if versionDir(n.Prefix, p.Version) == dir {
			return "a pod runs with it, " + p.String()
		}
	}
	return ""
}

// recover ends what an earlier run has left.
func (n *Node) recover(ctx context.Context) error {
	what, err := n.Disk.Recover(ctx, n.hooks())
	if what != "" && err == nil {
		n.say("an earlier run of coco node was interrupted; it is %s", what)
	}
	if errors.Is(err, txn.ErrInUse) {
		return nil // the versions stay; a later run looks again
	}
	return err
}

// plan is what an installation or its removal is going to do.
type plan struct {
	txn.Plan
	notes []string
	dirs  []string // that the plan makes outside of PREFIX
}

// edits asks the engines and turns their edits into changes.
func (n *Node) edits(ctx context.Context, p *plan, want []engine.Handler) error {
	for _, e := range n.Engines {
		edits, notes, err := e.Plan(ctx, want)
		if err != nil {
			return err
		}
		p.notes = append(p.notes, notes...)
		before := len(p.Changes)
		for _, edit := range edits {
			if err := n.edit(p, edit); err != nil {
				return err
			}
		}
		loaded := e.State(ctx)
		if loaded.Running && (len(p.Changes) > before || len(want) > 0 && !sameHandlers(loaded, want)) {
			p.Restart = append(p.Restart, e.Name())
		}
	}
	return nil
}

// sameHandlers tells whether a running engine has just the handlers that it should have. One that cannot say has what
// its files say.
func sameHandlers(s engine.State, want []engine.Handler) bool {
	var names []string
	for _, h := range want {
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return s.Problem != "" || slices.Equal(names, slices.Sorted(slices.Values(s.Handlers)))
}

// edit adds the change of a file, and of the directories that it needs.
func (n *Node) edit(p *plan, e engine.Edit) error {
	before, err := n.Disk.Read(e.Path)
	if err != nil {
		return err
	}
	if before != nil && before.Mode.Type() != 0 {
		return fmt.Errorf("%s is a %s, not a file", e.Path, before.Mode.Type())
	}
	c := txn.Change{Path: e.Path, Before: before}
	if e.Text != nil {
		if err := n.parents(p, e.Path); err != nil {
			return err
		}
		c.After = newFile(e.Text, 0o644)
		if before != nil {
			c.After.Mode, c.After.UID, c.After.GID = before.Mode, before.UID, before.GID
		}
	}
	p.Changes = append(p.Changes, c)
	return nil
}

func newFile(text []byte, mode fs.FileMode) *txn.File {
	return &txn.File{Mode: mode, Data: text, UID: os.Geteuid(), GID: os.Getegid()}
}

// parents plans the directories above a path that are not there.
func (n *Node) parents(p *plan, path string) error {
	var missing []string
	for dir := filepath.Dir(path); dir != "/" && !slices.Contains(p.dirs, dir); dir = filepath.Dir(dir) {
		f, err := n.Disk.Read(dir)
		if err != nil {
			return err
		}
		if f != nil {
			break
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		p.dirs = append(p.dirs, dir)
		p.Changes = append(p.Changes, txn.Change{
			Path: dir, After: &txn.File{Mode: fs.ModeDir | 0o755, UID: os.Geteuid(), GID: os.Getegid()},
		})
	}
	return nil
}

// record plans the change of the record, nil for its removal.
func (n *Node) record(p *plan, r *Record) error {
	before, err := n.Disk.Read(n.recordPath())
	if err != nil {
		return err
	}
	c := txn.Change{Path: n.recordPath(), Before: before}
	if r != nil {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		c.After = newFile(append(text, '\n'), 0o644)
		if before != nil && string(before.Data) == string(c.After.Data) {
			return nil
		}
	} else if before == nil {
		return nil
	}
	p.Changes = append(p.Changes, c)
	return nil
}

// versions lists what is installed: names of directories below PREFIX/versions.
func (n *Node) versions() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join("/", n.Disk.Root, n.Prefix, "versions"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// dropDirs plans the removal of directories that an installation has made.
func (n *Node) dropDirs(p *plan, dirs []string) error {
	for _, dir := range slices.Backward(dirs) {
		before, err := n.Disk.Read(dir)
		if err != nil {
			return err
		}
		if before != nil && before.Mode.IsDir() {
			p.Changes = append(p.Changes, txn.Change{Path: dir, Before: before})
		}
	}
	return nil
}
