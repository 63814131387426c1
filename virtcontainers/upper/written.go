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
	if err := l.look(w, d, ""); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return w, nil
}

// look looks at the entries of a directory, and closes it unless it is the first.
func (l *Layer) look(w *Written, d *os.File, rel string) error {
	if rel != "" {
		defer d.Close()
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := stat(d, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := l.lookAt(w, d, path.Join(rel, name), st); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layer) lookAt(w *Written, d *os.File, rel string, st *unix.Stat_t) error {
	hash := maphash.String(l.seed, rel)
	e := copytree.Entry{Rel: rel, Stat: *st}
	isNew := st.Ctim.Nano() >= l.since
	switch kind := st.Mode & unix.S_IFMT; {
	case engines(rel) || whiteout(st):
		return nil
	case kind == unix.S_IFDIR:
		if isNew && !l.brought[hash] && l.ours[hash] != stampOf(l.seed, st) {
			w.Entries = append(w.Entries, e)
			w.stamps[hash] = stampOf(l.seed, st)
		}
		sub, err := hostfs.Beneath(d, path.Base(rel), unix.O_RDONLY|unix.O_DIRECTORY, false)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return l.look(w, sub, rel)
	case !isNew || l.ours[hash] == stampOf(l.seed, st):
		return nil
	case kind == unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(d.Fd()), path.Base(rel), buf)
		if err != nil {
			return os.NewSyscallError("readlink", err)
		}
		e.Target = string(buf[:n])
	case kind != unix.S_IFREG:
		w.Left = append(w.Left, rel)
		return nil
	}
	w.Entries = append(w.Entries, e)
	w.stamps[hash] = stampOf(l.seed, st)
	return nil
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
