// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OOMWatcher reports groups in which the kernel killed a process for want of memory. It watches
// memory.events by inotify; every kill that was noticed becomes one event, in order.
type OOMWatcher struct {
	f    *os.File
	done chan struct{}

	mu     sync.Mutex
	groups map[int32]*watched  // guarded by mu; by watch descriptor
	byName map[string]*watched // guarded by mu
	queue  []string            // guarded by mu
	signal chan struct{}       // capacity 1: the queue has grown
}

type watched struct {
	name  string
	group Group
	wd    int32
	kills uint64
	thrash
}

// maxQueue bounds events that nobody fetches; the oldest go first.
const maxQueue = 256

// NewOOMWatcher starts a watcher.
func NewOOMWatcher() (*OOMWatcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch for memory shortage: %w", err)
	}
	w := &OOMWatcher{
		f: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}),
		groups: map[int32]*watched{}, byName: map[string]*watched{}, signal: make(chan struct{}, 1),
	}
	go w.loop()
	return w, nil
}

// Close stops the watcher; Next then returns os.ErrClosed.
func (w *OOMWatcher) Close() {
	_ = w.f.Close()
	<-w.done
}

// Add watches a group under a name.
func (w *OOMWatcher) Add(name string, g Group) error {
	rc, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var wd int
	cerr := rc.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), g.file("memory.events"), unix.IN_MODIFY)
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("watch %s: %w", g.file("memory.events"), err)
	}
	e := &watched{name: name, group: g, wd: int32(wd), kills: g.keys("memory.events")["oom_kill"]} //nolint:gosec // a watch
	w.groups[e.wd], w.byName[name] = e, e
	return nil
}

// Remove forgets a group. The kernel drops the watch with the file.
func (w *OOMWatcher) Remove(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.byName[name]; ok {
		delete(w.byName, name)
		delete(w.groups, e.wd)
	}
}

// Check looks at a group at once, so that an event precedes the news of the exit that it caused.
func (w *OOMWatcher) Check(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.byName[name]; ok {
		w.lookLocked(e)
	}
}

func (w *OOMWatcher) lookLocked(e *watched) {
	k, ok := e.group.keys("memory.events")["oom_kill"]
	if !ok || k <= e.kills {
		return
	}
	e.kills = k
	w.addLocked(e)
}

// addLocked queues an event.
func (w *OOMWatcher) addLocked(e *watched) {
	if len(w.queue) == maxQueue {
		w.queue = w.queue[1:]
	}
	w.queue = append(w.queue, e.name)
	w.wakeLocked()
}

// watchThrashLocked looks whether a group that has reached its limit still gets anywhere, and kills in one that does
// not, as the kernel would. The group tells each time that it reaches the limit.
func (w *OOMWatcher) watchThrashLocked(e *watched, now time.Time) {
	if !e.due(now) {
		return
	}
	p := e.group.pressure()
	if !e.look(now, p) {
		return
	}
	e.thrash = thrash{}
	// A process that has ended meanwhile needs no signal; else the next look tries again.
	_ = e.group.killLargest(p.limit, func() { w.addLocked(e) })
}

func (w *OOMWatcher) wakeLocked() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// Next blocks until there is an event and returns its group's name.
func (w *OOMWatcher) Next(ctx context.Context) (string, error) {
	for {
		if name, ok := w.pop(); ok {
			return name, nil
		}
		select {
		case <-w.signal:
		case <-w.done:
			return "", os.ErrClosed
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func (w *OOMWatcher) pop() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return "", false
	}
	name := w.queue[0]
	w.queue = w.queue[1:]
	if len(w.queue) > 0 {
		w.wakeLocked() // for another caller
	}
	return name, true
}

func (w *OOMWatcher) loop() {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return // closed
		}
		w.mu.Lock()
		for _, wd := range descriptors(buf[:n]) {
			if e, ok := w.groups[wd]; ok {
				w.lookLocked(e)
				w.watchThrashLocked(e, time.Now())
			}
		}
		w.mu.Unlock()
	}
}

// descriptors reads the watch descriptors of a batch of inotify events: inotify(7), struct
// inotify_event: wd, mask, cookie, len (32 bits each), then len bytes of name.
func descriptors(b []byte) []int32 {
	const header = int(unsafe.Sizeof(unix.InotifyEvent{}))
	var out []int32
	for len(b) >= header {
		out = append(out, int32(binary.NativeEndian.Uint32(b))) //nolint:gosec // same width
		skip := uint64(header) + uint64(binary.NativeEndian.Uint32(b[12:]))
		if skip > uint64(len(b)) {
			break
		}
		b = b[skip:]
	}
	return out
}
