// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxNoted bounds the memory that a stream leaves: 16 bytes a file and the map's own.
const maxNoted = 1 << 16

// margin is how old a change must be to be noted. The clock of file systems is coarse: a file that has just changed may
// change again at the same time.
const margin = time.Second

// memory has the files of a stream: paths, hashed, and what they were, hashed.
type memory map[uint64]uint64

var seed = maphash.MakeSeed()

// errReplaced is the error of a file that another one has replaced while it was looked at.
var errReplaced = errors.New("it was replaced while it was read")

// remember begins the memory of a stream. A write into a mapped page changes a file's time
// only once until the page is written to its disk: so everything is written first. Where there is no disk, nothing is
// noted.
func (t *tree) remember(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("file system of the container's writable layer: %w", err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.had = nil
		return nil
	}
	t.has, t.settled = memory{}, time.Now().Add(-margin).UnixNano()
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("write the container's writable layer to its disk: %w", err)
	}
	return nil
}

// unchanged notes a file, and reports whether the last stream had it as it is.
func (t *tree) unchanged(path string, st *unix.Stat_t) bool {
	if t.has == nil || st.Nlink != 1 {
		return false
	}
	name := maphash.String(seed, path)
	is := maphash.Comparable(seed, [3]int64{int64(st.Ino), st.Ctim.Nano(), st.Size}) //nolint:gosec // only compared
	was, known := t.had[name]
	if st.Ctim.Nano() < t.settled && len(t.has) < maxNoted {
		t.has[name] = is
	}
	return known && was == is
}

// vanished reports whether the error of an entry is that it is not there any more.
func (t *tree) vanished(err error) bool {
	return t.running && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, errReplaced))
}

// filled reads a file that may become shorter meanwhile: zeros follow its end, as if it were still as long.
type filled struct{ f *os.File }

func (f filled) Read(b []byte) (int, error) {
	n, err := f.f.Read(b)
	if errors.Is(err, io.EOF) {
		clear(b)
		return len(b), nil
	}
	return n, err
}
