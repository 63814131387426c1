// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// Watch holds every process that opens the files of a running container until they are as the guest has them. It marks
// the upper directory, which the kernel opens for everybody who opens the root of an overlay, and the file "lower" of
// Docker's overlay2, which engines that look at a name before they open anything have to read first. The root of the
// overlay is not marked: the kernel opens it for the reader of an event, which then would wait for itself.
//
// The kernel holds the opener (a permission event of fanotify) until Serve has answered, or until the Watch is closed,
// also by the end of this process: then all are let through.
type Watch struct {
	group *os.File
	self  int32

	mu      sync.Mutex
	waiting []int         // guarded by mu; descriptors of the events that are to be answered
	wake    chan struct{} // has room for one
	wrote   atomic.Bool   // somebody may have written since the last look
	opened  atomic.Bool   // somebody has opened the directory
}

// Opened reports whether anybody has opened the directory since the beginning, who may write into it.
func (w *Watch) Opened() bool { return w.opened.Load() }

// Watch begins to hold those who open the layer's files. What opens them before Serve runs waits for it.
func (l *Layer) Watch() (*Watch, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|
		unix.O_LARGEFILE|unix.O_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("this kernel gives no events for opened files (CONFIG_FANOTIFY_ACCESS_PERMISSIONS): %w", err)
	}
	w := &Watch{
		group: os.NewFile(uintptr(fd), "fanotify"), self: int32(os.Getpid()), //nolint:gosec // Linux's are below 2^22
		wake: make(chan struct{}, 1),
	}
	for _, m := range []struct {
		path string
		dir  uint64
	}{
		{l.dirs.Upper, unix.FAN_ONDIR},
		{filepath.Join(filepath.Dir(l.dirs.Upper), "lower"), 0},
	} {
		err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM|m.dir, unix.AT_FDCWD, m.path)
		if err != nil && !(m.dir == 0 && errors.Is(err, fs.ErrNotExist)) { // other snapshotters have no such file
			return nil, errors.Join(fmt.Errorf("watch %s: %w", m.path, err), w.group.Close())
		}
	}
	if err := markOverlay(fd, l.dirs.Merged); err != nil {
		return nil, errors.Join(err, w.group.Close())
	}
	l.mu.Lock()
	l.since = time.Now().UnixNano()
	l.mu.Unlock()
	return w, nil
}

// markOverlay has the group receive an event for each file that is closed after a write in the overlay that an engine
// has mounted. Where no overlay is mounted (any more) nothing is marked: it would be the host's own file system.
func markOverlay(group int, merged string) error {
	if merged == "" {
		return nil
	}
	// Such a descriptor opens nothing of the upper directory, whose opener would be held.
	dir, err := os.OpenFile(merged, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory of the mounted overlay: %w", err)
	}
	is, err := isOverlay(int(dir.Fd()))
	if err == nil && is {
		// An older kernel has no such marks. Then files of an engine are noticed at the next exec.
		_ = unix.FanotifyMark(group, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CLOSE_WRITE, unix.AT_FDCWD,
			hostfs.Proc(dir))
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return fmt.Errorf("%s: %w", merged, err)
	}
	return nil
}

// isOverlay reports whether a directory is the root of a mounted overlay. The host's own file system may be an overlay,
// too, but then the directory is not its root.
func isOverlay(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return false, os.NewSyscallError("fstatfs", err)
	}
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &stx)
	return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, os.NewSyscallError("statx", err)
}

// Close lets everybody through who is held, and ends Serve.
func (w *Watch) Close() error { return w.group.Close() }

// Serve calls took after somebody has written files through the overlay, and answers until the Watch is closed. Those
// who have opened something before a call of bring are let through when
// it returns nil, and get EPERM when it does not: but for those who read "lower", because an engine does that to
// describe a container, too.
func (w *Watch) Serve(bring func() error, took func()) error {
	done := make(chan struct{})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		w.answer(bring, took, done)
	}()
	err := w.read()
	close(done)
	<-answered
	return err
}

// read reads events. Our own process is let through at once: it opens the directory to merge into it.
func (w *Watch) read() error {
	buf := make([]byte, 32*metadataSize)
	for {
		n, err := w.group.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("events of opened files: %w", err)
		}
		for b := buf[:n]; len(b) >= metadataSize; {
			e := b
			size := binary.NativeEndian.Uint32(e)
			if e[4] != unix.FANOTIFY_METADATA_VERSION || size < metadataSize || int(size) > len(b) {
				return fmt.Errorf("events of opened files: version %d, %d bytes, which this kernel does not have", e[4], size)
			}
			b = b[size:]
			fd, pid := int32(binary.NativeEndian.Uint32(e[16:])), int32(binary.NativeEndian.Uint32(e[20:])) //nolint:gosec // signed
			switch {
			case fd < 0: // the queue had no room; there is nobody to answer
			case binary.NativeEndian.Uint64(e[8:])&unix.FAN_CLOSE_WRITE != 0:
				_ = unix.Close(int(fd))
				w.wrote.Store(pid != w.self || w.wrote.Load())
				w.rouse()
			case pid == w.self:
				w.respond(int(fd), unix.FAN_ALLOW)
			default:
				w.hold(int(fd))
			}
		}
	}
}

// metadataSize is the size of an event.
const metadataSize = 24

func (w *Watch) hold(fd int) {
	w.mu.Lock()
	w.waiting = append(w.waiting, fd)
	w.mu.Unlock()
	w.rouse()
}

func (w *Watch) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns those who wait.
func (w *Watch) take() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.waiting
	w.waiting = nil
	return out
}

// answer brings the files for those who wait, and lets them through.
func (w *Watch) answer(bring func() error, took func(), done <-chan struct{}) {
	for {
		select {
		case <-w.wake:
		case <-done:
			for _, fd := range w.take() { // the group is closed, which has let them through
				_ = unix.Close(fd)
			}
			return
		}
		held := w.take()
		if w.wrote.Swap(false) {
			took()
		}
		if len(held) == 0 {
			continue
		}
		err := bring()
		w.opened.Store(true)
		for _, fd := range held {
			answer := uint32(unix.FAN_ALLOW)
			if err != nil && isDir(fd) {
				answer = unix.FAN_DENY
			}
			w.respond(fd, answer)
		}
	}
}

func isDir(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// respond answers an event. An error says that the opener was killed meanwhile or that the group is closed: in both
// cases nobody waits.
func (w *Watch) respond(fd int, answer uint32) {
	b := binary.NativeEndian.AppendUint32(nil, uint32(fd)) //nolint:gosec // a descriptor
	_, _ = w.group.Write(binary.NativeEndian.AppendUint32(b, answer))
	_ = unix.Close(fd)
}
