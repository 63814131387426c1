// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/txn"
)

// Options of an installation.
type Options struct {
	Source   string            // directory with bin and share/coco
	Release  string            // the version that its programs say
	Aliases  map[string]string // more names of handlers; nil: those of the installation that is there
	Settings json.RawMessage   // of the command, for later runs
	DryRun   bool
	Keep     int // versions to keep besides the current one and those that pods use; -1: all
}

// ErrNoEngine says that there is nothing to install coco for.
var ErrNoEngine = errors.New("no container engine was found on this host; install containerd first")

// Install brings the version of the source to this host and makes it the current one. It returns the differences of the
// files, as text; with DryRun that is all it does. An installation that is complete is left alone, without a word.
func (n *Node) Install(ctx context.Context, o Options) (string, error) {
	if len(n.Engines) == 0 {
		return "", ErrNoEngine
	}
	version, err := ReadSource(o.Source, o.Release)
	if err != nil {
		return "", err
	}
	unlock, err := n.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := n.ready(ctx, o.DryRun); err != nil {
		return "", err
	}
	p, err := n.planInstall(ctx, version, o)
	if err != nil {
		return "", err
	}
	for _, note := range p.notes {
		n.say("note: %s", note)
	}
	text := n.describe(p)
	if o.DryRun || p.empty() {
		return text, nil
	}
	n.say("install coco %s (%s) in %s", version.Hash, version.Release, n.Prefix)
	return text, n.run(ctx, p)
}

// ready ends an interrupted run, or, when nothing may change, refuses to look past it.
func (n *Node) ready(ctx context.Context, dryRun bool) error {
	if !dryRun {
		return n.recover(ctx)
	}
	if n.Disk.Pending() {
		return errors.New("an earlier run was interrupted; the next run without --dry-run undoes or finishes it first")
	}
	return nil
}

func (p *plan) empty() bool {
	return len(p.Add) == 0 && len(p.Changes) == 0 && len(p.Remove) == 0 && len(p.Restart) == 0
}

func (n *Node) run(ctx context.Context, p *plan) error {
	err := n.Disk.Run(ctx, p.Plan, n.hooks())
	if errors.Is(err, txn.ErrInUse) {
		return fmt.Errorf("%w; run the command again when it has ended", err)
	}
	return err
}

func (n *Node) planInstall(ctx context.Context, v Version, o Options) (*plan, error) {
	old, err := n.Installed()
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = &Record{}
	}
	r := Record{Current: v.Hash, Aliases: o.Aliases, Settings: o.Settings}
	if r.Aliases == nil {
		r.Aliases = old.Aliases
	}
	if err := checkAliases(r.Aliases); err != nil {
		return nil, err
	}
	for _, e := range n.Engines {
		r.Engines = append(r.Engines, e.Name())
	}
	p := &plan{}
	if err := n.planVersions(p, &r, old, v, o); err != nil {
		return nil, err
	}
	if err := n.edits(ctx, p, handlers(n.Prefix, r.Current, r.Versions, r.Aliases)); err != nil {
		return nil, err
	}
	if err := n.links(p, &r, old); err != nil {
		return nil, err
	}
	r.Dirs = append(slices.Clone(old.Dirs), p.dirs...)
	return p, n.record(p, &r)
}

// planVersions decides which versions there will be.
func (n *Node) planVersions(p *plan, r, old *Record, v Version, o Options) error {
	present, err := n.versions()
	if err != nil {
		return err
	}
	if !slices.Contains(present, v.Hash) {
		tree, err := v.tree(versionDir(n.Prefix, v.Hash), o.Source)
		if err != nil {
			return err
		}
		p.Add = append(p.Add, tree)
	} else if err := v.Check(filepath.Join("/", n.Disk.Root, versionDir(n.Prefix, v.Hash))); err != nil {
		return fmt.Errorf("version %s is installed, but not as it was made: %w; coco node uninstall, then install it again",
			v.Hash, err)
	}
	pods, err := n.Pods()
	if err != nil {
		return err
	}
	keep := []string{v.Hash}
	for _, pod := range pods {
		keep = append(keep, pod.Version)
	}
	// The record has the newest version last.
	for i, spare := len(old.Versions)-1, o.Keep; i >= 0; i-- {
		if name := old.Versions[i]; !slices.Contains(keep, name) && spare != 0 {
			keep = append(keep, name)
			spare--
		}
	}
	for _, name := range old.Versions {
		if name != v.Hash && slices.Contains(keep, name) && slices.Contains(present, name) {
			r.Versions = append(r.Versions, name)
		}
	}
	r.Versions = append(r.Versions, v.Hash)
	for _, name := range present {
		if !slices.Contains(keep, name) {
			p.Remove = append(p.Remove, versionDir(n.Prefix, name))
		}
	}
	return nil
}

// links plans links to the programs of the current version. Files of others stay.
func (n *Node) links(p *plan, r, old *Record) error {
	if n.Links == "" {
		return nil
	}
	for _, program := range []string{Shim, CLI, OCI} {
		path := filepath.Join(n.Links, filepath.Base(program))
		before, err := n.Disk.Read(path)
		if err != nil {
			return err
		}
		if before != nil && !slices.Contains(old.Links, path) {
			p.notes = append(p.notes, fmt.Sprintf("%s was there before and stays as it is", path))
			continue
		}
		r.Links = append(r.Links, path)
		target := filepath.Join(versionDir(n.Prefix, r.Current), program)
		if before != nil && before.Link == target {
			continue
		}
		if err := n.parents(p, path); err != nil {
			return err
		}
		after := newFile(nil, fs.ModeSymlink)
		after.Link = target
		p.Changes = append(p.Changes, txn.Change{Path: path, Before: before, After: after})
	}
	return nil
}

// Uninstall takes everything away that Install has brought. It refuses while pods run.
func (n *Node) Uninstall(ctx context.Context, dryRun bool) (string, error) {
	unlock, err := n.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := n.ready(ctx, dryRun); err != nil {
		return "", err
	}
	pods, err := n.Pods()
	if err != nil {
		return "", err
	}
	if len(pods) > 0 {
		var list []string
		for _, p := range pods {
			list = append(list, "  "+p.String())
		}
		return "", fmt.Errorf("%d pods run under coco; stop them first:\n%s", len(pods), strings.Join(list, "\n"))
	}
	p, err := n.planUninstall(ctx)
	if err != nil {
		return "", err
	}
	text := n.describe(p)
	if dryRun || p.empty() {
		return text, nil
	}
	n.say("remove coco from %s", n.Prefix)
	return text, n.run(ctx, p)
}

func (n *Node) planUninstall(ctx context.Context) (*plan, error) {
	old, err := n.Installed()
	if err != nil {
		return nil, err
	}
	p := &plan{}
	if err := n.edits(ctx, p, nil); err != nil {
		return nil, err
	}
	present, err := n.versions()
	if err != nil {
		return nil, err
	}
	for _, name := range present {
		p.Remove = append(p.Remove, versionDir(n.Prefix, name))
	}
	if old == nil {
		return p, nil
	}
	for _, path := range old.Links {
		before, err := n.Disk.Read(path)
		if err != nil {
			return nil, err
		}
		if before != nil && strings.HasPrefix(before.Link, n.Prefix+"/") {
			p.Changes = append(p.Changes, txn.Change{Path: path, Before: before})
		}
	}
	if err := n.record(p, nil); err != nil {
		return nil, err
	}
	return p, n.dropDirs(p, old.Dirs)
}

// Status is what is installed, and what the running engines say.
type Status struct {
	Prefix      string         `json:"prefix"`
	Installed   bool           `json:"installed"`
	Current     string         `json:"current,omitempty"`
	Release     string         `json:"release,omitempty"`
	Versions    []string       `json:"versions"`
	Interrupted bool           `json:"interrupted"` // the next run undoes or finishes an earlier one
	Engines     []engine.State `json:"engines"`
	Missing     []string       `json:"missing"` // handlers that a running engine has not loaded, as "engine: handler"
	Pods        []Pod          `json:"pods"`
}

// Status asks the engines. It changes nothing.
func (n *Node) Status(ctx context.Context) (Status, error) {
	s := Status{
		Prefix: n.Prefix, Interrupted: n.Disk.Pending(), Versions: []string{}, Engines: []engine.State{}, Missing: []string{},
	}
	var err error
	if s.Pods, err = n.Pods(); err != nil {
		return s, err
	}
	r, err := n.Installed()
	if err != nil {
		return s, err
	}
	var want []engine.Handler
	if r != nil {
		s.Installed, s.Current, s.Versions = true, r.Current, r.Versions
		want = handlers(n.Prefix, r.Current, r.Versions, r.Aliases)
		if v, err := readVersion(filepath.Join("/", n.Disk.Root, versionDir(n.Prefix, r.Current))); err == nil {
			s.Release = v.Release
		}
	}
	for _, e := range n.Engines {
		state := e.State(ctx)
		s.Engines = append(s.Engines, state)
		if r != nil && !slices.Contains(r.Engines, e.Name()) {
			continue
		}
		for _, h := range want {
			if state.Running && !slices.Contains(state.Handlers, h.Name) {
				s.Missing = append(s.Missing, e.Name()+": "+h.Name)
			}
		}
	}
	return s, nil
}
