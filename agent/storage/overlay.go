// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

const maxLower = 500 // overlayfs's own limit

func init() {
	register(contract.DriverOverlay, driver{
		options: func(o string) bool { return strings.HasPrefix(o, contract.OptionCreateDirectory) },
		sources: overlaySources,
		mount:   (*Manager).mountOverlay,
	})
}

// overlaySources lists the directories that an overlay is made of.
func overlaySources(s *agent.Storage) []string {
	var out []string
	for _, list := range s.GetOptions() {
		for o := range strings.SplitSeq(list, ",") {
			name, value, _ := strings.Cut(o, "=")
			switch name {
			case "lowerdir":
				out = append(out, strings.Split(value, ":")...)
			case "upperdir", "workdir":
				out = append(out, value)
			}
		}
	}
	for _, o := range s.GetDriverOptions() {
		if dir, ok := strings.CutPrefix(o, contract.OptionCreateDirectory); ok {
			out = append(out, dir)
		}
	}
	return out
}

// mountOverlay mounts layers on top of each other. The new mount API takes one layer at a time, so
// that their number is not bounded by the page that mount(2) has for options.
func (m *Manager) mountOverlay(_ context.Context, point string, mt *mounted, opts options) error {
	lower, upper, work, err := m.overlayDirs(&opts)
	if err != nil {
		return err
	}
	for _, o := range opts.data {
		switch o {
		case "volatile", "index=off", "xino=off", "metacopy=off", "redirect_dir=off", "redirect_dir=nofollow", "userxattr":
		default:
			return invalid(fmt.Errorf("unknown option %.100q for overlay", o))
		}
	}
	for _, o := range mt.storage.GetDriverOptions() {
		if dir, ok := strings.CutPrefix(o, contract.OptionCreateDirectory); ok {
			if err := m.createFor(mt, dir, lower[0], upper); err != nil {
				return fmt.Errorf("create directory for overlay: %w", err)
			}
		}
	}
	fs := opts.fileSystem("overlay", "overlay")
	var dirs opened
	defer dirs.close()
	for _, l := range lower {
		fs.Data = append(fs.Data, "lowerdir+="+dirs.path(m, l))
	}
	if upper != "" {
		fs.Data = append(fs.Data, "upperdir="+dirs.path(m, upper), "workdir="+dirs.path(m, work))
	}
	if dirs.err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(lower), dirs.err)
	}
	mount, err := fs.New()
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(lower), err)
	}
	return m.at(point, mt, mount)
}

// opened are directories by descriptor. Overlayfs looks names up anew and follows links in them, so it gets the
// /proc names of these descriptors, which lead to the directories that were opened here.
type opened struct {
	files []*os.File
	err   error // the first one
}

func (o *opened) path(m *Manager, dir string) string {
	if o.err != nil {
		return ""
	}
	f, err := m.dir.Open(dir)
	if err != nil {
		o.err = err
		return ""
	}
	o.files = append(o.files, f)
	return beneath.Proc(f)
}

func (o *opened) close() {
	for _, f := range o.files {
		_ = f.Close()
	}
}

// overlayDirs checks the directories of an overlay.
func (m *Manager) overlayDirs(opts *options) (lower []string, upper, work string, err error) {
	l, ok, err := opts.take("lowerdir")
	if err == nil && (!ok || l == "") {
		err = errors.New("overlay without lowerdir")
	}
	if err == nil {
		upper, _, err = opts.take("upperdir")
	}
	if err == nil {
		work, _, err = opts.take("workdir")
	}
	if err == nil && (upper == "") != (work == "") {
		err = errors.New("overlay with only one of upperdir and workdir")
	}
	if err != nil {
		return nil, "", "", invalid(err)
	}
	if strings.Count(l, ":") >= maxLower {
		return nil, "", "", invalid(fmt.Errorf("overlay of more than %d layers", maxLower))
	}
	for d := range strings.SplitSeq(l, ":") {
		c, err := m.clean(d)
		if err != nil {
			return nil, "", "", fmt.Errorf("lowerdir: %w", err)
		}
		lower = append(lower, c)
	}
	if upper == "" {
		return lower, "", "", nil
	}
	if upper, err = m.clean(upper); err != nil {
		return nil, "", "", fmt.Errorf("upperdir: %w", err)
	}
	if work, err = m.clean(work); err != nil {
		return nil, "", "", fmt.Errorf("workdir: %w", err)
	}
	return lower, upper, work, nil
}

// createFor makes an upper or work directory. A new upper directory takes mode and owner of the top
// layer's root: the overlay shows those as its own.
func (m *Manager) createFor(mt *mounted, path, topLayer, upper string) error {
	path, err := m.clean(path)
	if err != nil {
		return err
	}
	dir, made, err := m.dir.Make(path, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	if !made {
		return nil
	}
	mt.undo.Push("remove "+path, func(context.Context) error { return m.dir.RemoveDir(path) })
	if path != upper {
		return nil
	}
	top, err := m.dir.Open(topLayer)
	if err != nil {
		return err
	}
	defer top.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Chown(beneath.Proc(dir), int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("chown", err)
	}
	return os.NewSyscallError("chmod", unix.Chmod(beneath.Proc(dir), st.Mode&0o7777))
}
