// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package txn changes several files of a host as one step: all of them, or none.
//
// A Plan says what each path is before and after. Run writes the plan to a journal, then writes every new file beside
// its path, then puts the files in place by rename. Until the journal says "done", a later run undoes everything;
// from then on it finishes what is left. A kill, a full disk or a read-only directory at any moment therefore leaves
// the old state or the new one, once Recover has run. Undoing writes no data: it renames the old files back, so a
// full disk cannot stop it.
//
// The caller knows what the files mean.
package txn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is what stands at a path. A nil *File is a path with nothing.
type File struct {
	Mode fs.FileMode `json:"mode"`           // permissions, with fs.ModeDir or fs.ModeSymlink
	Data []byte      `json:"data,omitempty"` // of a regular file
	Link string      `json:"link,omitempty"` // target of a symbolic link
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

// Change is one path of a plan. A directory is only made or removed; one that has files of others stays.
type Change struct {
	Path   string `json:"path"`
	Before *File  `json:"before,omitempty"`
	After  *File  `json:"after,omitempty"`
}

// Plan is what one run does: directories with many files are added first and removed last, and between the two the
// changes happen together.
type Plan struct {
	Add     []Tree   `json:"-"`
	Changes []Change `json:"changes"`
	Remove  []string `json:"remove,omitempty"` // directories
	Restart []string `json:"restart,omitempty"`
}

// Disk is where plans run.
type Disk struct {
	Root    string // before each path; "" or "/" for the host itself
	Journal string // path of the journal; its directory is made and, when empty, removed
	// Step is asked before each change of the file system. Tests stop there. An error of it is as if the change had
	// failed.
	Step func(op, path string) error
}

// Hooks are the caller's part of a run. Each may be nil.
type Hooks struct {
	// Verify looks at the changed files. Its error undoes the run.
	Verify func(context.Context) error
	// Activate makes daemons read the changed files; names are Plan.Restart. Its error undoes the files, and Activate is
	// called again for the old ones.
	Activate func(ctx context.Context, names []string) error
	// InUse says why a directory cannot be removed, "" if it can.
	InUse func(path string) string
}

// journal is the file that a later run reads.
type journal struct {
	Plan
	Added []string `json:"added,omitempty"`
	Done  bool     `json:"done"`  // the new state holds
	Asked bool     `json:"asked"` // daemons may have read it, although Done is false again
}

// ErrInUse is the class of a removal that was left for later.
var ErrInUse = errors.New("in use")

func (d *Disk) at(path string) string { return filepath.Join("/", d.Root, path) }

// Read returns what stands at a path.
func (d *Disk) Read(path string) (*File, error) {
	st, err := os.Lstat(d.at(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &File{Mode: st.Mode() & (fs.ModePerm | fs.ModeType)}
	f.UID, f.GID = owner(st)
	switch {
	case st.IsDir():
	case f.Mode&fs.ModeSymlink != 0:
		f.Mode = fs.ModeSymlink
		f.Link, err = os.Readlink(d.at(path))
	case st.Mode().IsRegular():
		f.Data, err = os.ReadFile(d.at(path))
	default:
		err = fmt.Errorf("%s is neither a file nor a directory nor a link", path)
	}
	return f, err
}

func same(a, b *File) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Mode.Type() == b.Mode.Type() && string(a.Data) == string(b.Data) && a.Link == b.Link
}

// Run does the plan. On an error the old state holds, unless the error says that a journal was left.
func (d *Disk) Run(ctx context.Context, p Plan, h Hooks) error {
	j := journal{Plan: p}
	for _, t := range p.Add {
		j.Added = append(j.Added, t.Path)
	}
	for _, c := range p.Changes {
		if now, err := d.Read(c.Path); err != nil || !same(now, c.Before) {
			return errors.Join(fmt.Errorf("%s changed while the plan was made; run the command again", c.Path), err)
		}
	}
	if err := d.save(j); err != nil {
		return errors.Join(fmt.Errorf("write the journal %s: %w", d.Journal, err), d.dropJournal())
	}
	err := d.apply(p)
	if err == nil && h.Verify != nil {
		err = h.Verify(ctx)
	}
	if err == nil {
		j.Done = true
		err = d.save(j)
	}
	if err != nil {
		return errors.Join(err, d.undo(ctx, j, h))
	}
	if err := d.activate(ctx, j, h); err != nil {
		return err
	}
	return d.finish(j, h)
}

// activate tells the daemons. When one does not come back, the old files do, and it gets them.
func (d *Disk) activate(ctx context.Context, j journal, h Hooks) error {
	if h.Activate == nil || len(j.Restart) == 0 {
		return nil
	}
	err := h.Activate(ctx, j.Restart)
	if err == nil {
		return nil
	}
	j.Done, j.Asked = false, true
	if serr := d.save(j); serr != nil {
		return errors.Join(err, fmt.Errorf("the journal %s is left: %w", d.Journal, serr))
	}
	return errors.Join(err, d.undo(ctx, j, h))
}

// Pending tells whether an earlier run was interrupted.
func (d *Disk) Pending() bool {
	_, err := os.Lstat(d.at(d.Journal))
	return err == nil
}

// Recover ends an interrupted run. It returns "" if there was none, "undone" or "finished".
func (d *Disk) Recover(ctx context.Context, h Hooks) (string, error) {
	text, err := os.ReadFile(d.at(d.Journal))
	if errors.Is(err, fs.ErrNotExist) {
		return "", d.dropJournal() // a kill may have come before or after the journal's life
	}
	var j journal
	if err == nil {
		err = json.Unmarshal(text, &j)
	}
	if err != nil {
		return "", fmt.Errorf("read the journal of an interrupted run, %s: %w", d.Journal, err)
	}
	if !j.Done {
		return "undone", d.undo(ctx, j, h)
	}
	if err := d.activate(ctx, j, h); err != nil {
		return "", err
	}
	return "finished", d.finish(j, h)
}

// apply adds the trees and makes the changes.
func (d *Disk) apply(p Plan) error {
	for _, t := range p.Add {
		if err := d.addTree(t); err != nil {
			return err
		}
	}
	for _, c := range p.Changes {
		if err := d.prepare(c); err != nil {
			return fmt.Errorf("prepare the change of %s: %w", c.Path, err)
		}
	}
	for _, c := range p.Changes {
		if err := d.place(c); err != nil {
			return fmt.Errorf("change %s: %w", c.Path, err)
		}
	}
	return nil
}

// undo brings the old state back, and removes the journal when all of it is there.
func (d *Disk) undo(ctx context.Context, j journal, h Hooks) error {
	var errs []error
	for i := len(j.Changes) - 1; i >= 0; i-- {
		if err := d.putBack(j.Changes[i]); err != nil {
			errs = append(errs, fmt.Errorf("undo the change of %s: %w", j.Changes[i].Path, err))
		}
	}
	for _, path := range j.Added {
		if err := d.dropTree(path); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && j.Asked && h.Activate != nil {
		if err := h.Activate(ctx, j.Restart); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w; the journal %s is left, the next run of coco node tries again",
			errors.Join(errs...), d.Journal)
	}
	return d.dropJournal()
}

// finish removes what only the old state needed.
func (d *Disk) finish(j journal, h Hooks) error {
	for _, c := range j.Changes {
		if err := d.tidy(c); err != nil {
			return err
		}
	}
	var kept []error
	for _, path := range j.Remove {
		if h.InUse != nil {
			if why := h.InUse(path); why != "" {
				kept = append(kept, fmt.Errorf("%s stays: %s: %w", path, why, ErrInUse))
				continue
			}
		}
		if err := d.dropTree(path); err != nil {
			return err
		}
	}
	return errors.Join(append(kept, d.dropJournal())...)
}
