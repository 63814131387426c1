// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostvolume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Watcher tells when the entries of directories change. One serves a whole pod: the kernel bounds
// how many a user may have.
type Watcher struct {
	f *os.File

	mu  sync.Mutex
	dir map[int32]string // guarded by mu; by watch descriptor
}

// events are changes of a directory's entries: that kubelet swaps ..data is a rename. Modes change
// when kubelet gives a volume to a group.
const events = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB |
	unix.IN_ONLYDIR

// NewWatcher makes a watcher.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, errors.New("watch volumes: this host's limit of inotify instances is reached; raise the sysctl " +
			"fs.inotify.max_user_instances")
	}
	if err != nil {
		return nil, fmt.Errorf("watch volumes: %w", err)
	}
	return &Watcher{f: os.NewFile(uintptr(fd), "inotify"), dir: map[int32]string{}}, nil
}

// Add begins to watch a directory, which Next calls by the name that the file has. The descriptor is not kept: an
// open one would keep kubelet from unmounting the volume.
func (w *Watcher) Add(f *os.File) error {
	dir := f.Name()
	conn, err := w.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch volume %s: %w", dir, err)
	}
	w.mu.Lock() // an event must find the name
	defer w.mu.Unlock()
	var wd int
	var werr error
	err = conn.Control(func(fd uintptr) { wd, werr = unix.InotifyAddWatch(int(fd), hostfs.Proc(f), events) })
	if errors.Is(werr, unix.ENOSPC) {
		return fmt.Errorf("watch volume %s: this host's limit of inotify watches is reached; raise the sysctl "+
			"fs.inotify.max_user_watches", dir)
	}
	if err := errors.Join(err, werr); err != nil {
		return fmt.Errorf("watch volume %s: %w", dir, err)
	}
	w.dir[int32(wd)] = dir //nolint:gosec // as the kernel has it
	return nil
}

// Next waits for changes and returns the directories that have changed, each once. After Close it
// returns os.ErrClosed.
func (w *Watcher) Next() ([]string, error) {
	buf := make([]byte, 16<<10)
	n, err := w.f.Read(buf)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		wd := int32(binary.NativeEndian.Uint32(b)) //nolint:gosec // as the kernel has it
		mask := binary.NativeEndian.Uint32(b[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		b = b[min(size, len(b)):]
		switch dir, ok := w.dir[wd]; {
		case mask&unix.IN_Q_OVERFLOW != 0: // some are lost: look everywhere
			for _, d := range w.dir {
				out = append(out, d)
			}
		case mask&unix.IN_IGNORED != 0:
			delete(w.dir, wd)
		case ok:
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Close ends the watching, and a Next that waits.
func (w *Watcher) Close() error { return w.f.Close() }
