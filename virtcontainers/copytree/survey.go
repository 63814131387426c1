// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copytree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

const (
	entryCost = 4 << 10 // what an entry of a directory counts at least: each is a request
	batch     = 512     // names that are read at once
	maxTarget = 4095    // of a link
)

// surveyor lists the entries to copy.
type surveyor struct {
	ctx    context.Context // of the one survey call that it lives in
	source *os.File
	limit  uint64 // bytes
	view   View
	skip   func(rel string) bool

	total uint64
	list  []Entry
}

func survey(ctx context.Context, source *os.File, limitMiB uint64, v View) ([]Entry, error) {
	if err := hostfs.NotPseudo(source); err != nil {
		return nil, err
	}
	s := &surveyor{ctx: ctx, source: source, limit: limitMiB * mib, view: v}
	if v.Skip != nil {
		s.skip = v.Skip(source)
	}
	var e Entry
	if err := unix.Fstat(int(source.Fd()), &e.Stat); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if err := s.add(e); err != nil {
		return nil, err
	}
	if e.kind() == unix.S_IFDIR {
		if err := s.walk(e); err != nil {
			return nil, err
		}
	}
	return s.list, nil
}

// add notes an entry and counts it.
func (s *surveyor) add(e Entry) error {
	name := path.Join(s.source.Name(), e.Rel)
	if kind := uncopyable(e.Stat.Mode); kind != "" || e.Rel == "" && e.kind() == unix.S_IFLNK {
		if kind == "" {
			kind = "symbolic link"
		}
		return fmt.Errorf("%s is a %s of the host, which cannot be copied into a VM: %w", show(name), kind,
			errdefs.ErrInvalidArgument)
	}
	cost := uint64(entryCost)
	if e.kind() == unix.S_IFREG {
		cost = max(cost, uint64(e.Stat.Size)) //nolint:gosec // a size
	}
	if s.total += cost; s.total > s.limit && (e.Rel != "" || cost > entryCost) {
		return fmt.Errorf("the source %s is larger than can be copied into the VM: %s of %d entries so far, the limit is "+
			"%d MiB (runtime.max_copy_mib): %w",
			show(s.source.Name()), size(s.total), len(s.list)+1, s.limit/mib, errdefs.ErrInvalidArgument)
	}
	s.list = append(s.list, e)
	return nil
}

// walk lists the entries of a directory, each before those below it. A directory is opened by its whole path beneath
// the source each time: with a descriptor per level, a deep tree could use them all up.
func (s *surveyor) walk(dir Entry) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	f, err := hostfs.Beneath(s.source, dir.Rel, unix.O_RDONLY|unix.O_DIRECTORY, !s.view.OneFS)
	if err != nil {
		return changed(err)
	}
	kids, err := s.kids(f, dir)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range kids {
		if err := s.add(e); err != nil {
			return err
		}
		if e.kind() == unix.S_IFDIR {
			if err := s.walk(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// kids describes the names in a directory, at most as many as may be copied.
func (s *surveyor) kids(f *os.File, dir Entry) ([]Entry, error) {
	if err := is(f, dir); err != nil {
		return nil, err
	}
	if err := hostfs.NotPseudo(f); err != nil {
		return nil, err
	}
	most := int(s.limit/entryCost) + 1 //nolint:gosec // a configured number of MiB
	var out []Entry
	for {
		names, err := f.Readdirnames(batch)
		for _, n := range names {
			e := Entry{Rel: path.Join(dir.Rel, n)}
			if s.skip != nil && s.skip(e.Rel) {
				continue
			}
			if err := describe(f, n, &e); err != nil {
				return nil, changed(err)
			}
			if e.Stat.Dev != dir.Stat.Dev && e.kind() == unix.S_IFREG {
				if err := s.mounted(e); err != nil {
					return nil, err
				}
			}
			out = append(out, e)
		}
		if len(out) > most || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	// slices.SortFunc is compiled anew for each type, which costs the shim 30 kB for one as large as Entry.
	sort.Slice(out, func(a, b int) bool { return out[a].Rel < out[b].Rel })
	return out, nil
}

// mounted looks at a file that something is mounted on.
func (s *surveyor) mounted(e Entry) error {
	f, err := hostfs.Beneath(s.source, e.Rel, unix.O_PATH, !s.view.OneFS)
	if err != nil {
		return changed(err)
	}
	defer f.Close()
	return hostfs.NotPseudo(f)
}

func describe(dir *os.File, name string, e *Entry) error {
	if err := unix.Fstatat(int(dir.Fd()), name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.kind() != unix.S_IFLNK {
		return nil
	}
	buf := make([]byte, maxTarget+1)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if errors.Is(err, unix.EINVAL) { // not a link any more
		return ErrChanged
	}
	if err != nil {
		return err
	}
	e.Target = string(buf[:n])
	return nil
}

// show quotes a name that a message could not carry.
func show(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

func size(n uint64) string {
	if n < mib {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func uncopyable(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return ""
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFCHR:
		return "character device"
	default:
		return "file of an unknown kind"
	}
}
