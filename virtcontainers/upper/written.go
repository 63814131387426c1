// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Written are files that an engine has put into the upper directory while the container runs.
type Written struct {
	Dir     *os.File // the upper directory
	Entries []copytree.Entry
	Left    []string // paths of pipes and devices, which cannot be copied into the guest
	stamps  map[uint64]uint64
}

// stampOf tells a file from another one of its name.
func stampOf(seed maphash.Seed, st *unix.Stat_t) uint64 {
	var b [32]byte
	for i, n := range [...]uint64{st.Ino, uint64(st.Mtim.Nano()), uint64(st.Size), uint64(st.Mode)} { //nolint:gosec // bits
		binary.NativeEndian.PutUint64(b[8*i:], n)
	}
	return maphash.Bytes(seed, b[:])
}

// Written looks for what an engine has written since the container was started: what has changed since then and is not
// what the guest has sent.
func (l *Layer) Written() (_ *Written, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := openDir(l.dirs.Upper)
	if err != nil {
		return nil, err
	}
	w := &Written{Dir: d, stamps: map[uint64]uint64{}}
	err = each(d, "", func(d *os.File, rel string, st *unix.Stat_t) error { return l.look(w, d, rel, st) })
	if err == nil {
		err = l.parents(w)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return w, nil
}

// parents adds the directories of the entries: a new entry changes the time of its directory in the guest, while an
// engine may have set it again.
func (l *Layer) parents(w *Written) error {
	for _, e := range w.Entries[:len(w.Entries):len(w.Entries)] {
		rel := path.Dir(e.Rel)
		hash := maphash.String(l.seed, rel)
		if _, there := w.stamps[hash]; there || rel == "." {
			continue
		}
		f, err := hostfs.Beneath(w.Dir, rel, unix.O_PATH|unix.O_DIRECTORY, false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := errors.Join(unix.Fstat(int(f.Fd()), &st), f.Close()); err != nil {
			return err
		}
		w.Entries = append(w.Entries, copytree.Entry{Rel: rel, Stat: st})
		w.stamps[hash] = stampOf(l.seed, &st)
	}
	return nil
}

// each visits what is below a directory, a directory before its entries. d is the parent of the entry.
func each(d *os.File, rel string, visit func(d *os.File, rel string, st *unix.Stat_t) error) error {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := stat(d, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = visit(d, path.Join(rel, name), st)
		}
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && !engines(path.Join(rel, name)) {
			err = below(d, path.Join(rel, name), visit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// below visits the entries of a directory.
func below(parent *os.File, rel string, visit func(d *os.File, rel string, st *unix.Stat_t) error) error {
	d, err := hostfs.Beneath(parent, path.Base(rel), unix.O_RDONLY|unix.O_DIRECTORY, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(each(d, rel, visit), d.Close())
}

// look adds an entry if it is new and not the guest's.
func (l *Layer) look(w *Written, d *os.File, rel string, st *unix.Stat_t) error {
	hash, stamp := maphash.String(l.seed, rel), stampOf(l.seed, st)
	e := copytree.Entry{Rel: rel, Stat: *st}
	switch kind := st.Mode & unix.S_IFMT; {
	case engines(rel) || whiteout(st) || st.Ctim.Nano() < l.since || l.ours[hash] == stamp:
		return nil
	case kind == unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(d.Fd()), path.Base(rel), buf)
		if err != nil {
			return os.NewSyscallError("readlink", err)
		}
		e.Target = string(buf[:n])
	case kind != unix.S_IFREG && kind != unix.S_IFDIR:
		w.Left = append(w.Left, rel)
		return nil
	}
	w.Entries = append(w.Entries, e)
	w.stamps[hash] = stamp
	return nil
}

// noteDirs notes the directories that the guest has sent, as the merge has left them: it has changed their times.
func (l *Layer) noteDirs() (err error) {
	d, err := openDir(l.dirs.Upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return each(d, "", func(_ *os.File, rel string, st *unix.Stat_t) error {
		if hash := maphash.String(l.seed, rel); st.Mode&unix.S_IFMT == unix.S_IFDIR && l.brought[hash] {
			l.note(hash, stampOf(l.seed, st))
		}
		return nil
	})
}

// engines reports whether a path is the engine's own: a directory that it makes for a moment to change its root, and
// files that it mounts something on, and opens for writing without need.
func engines(rel string) bool {
	switch rel {
	case "etc/resolv.conf", "etc/hostname", "etc/hosts", ".dockerenv":
		return true
	}
	return strings.HasPrefix(rel, ".pivot_root") && !strings.Contains(rel, "/")
}

// Took notes that the guest has what was written.
func (l *Layer) Took(w *Written) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for hash, stamp := range w.stamps {
		l.note(hash, stamp)
	}
}

func (l *Layer) note(hash, stamp uint64) {
	if l.ours == nil {
		l.ours = map[uint64]uint64{}
	}
	l.ours[hash] = stamp
}
