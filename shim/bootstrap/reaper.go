// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapDelay is how long a zombie is left to its own waiter. Later it is an orphan that this process inherited as the
// subreaper.
const reapDelay = 5 * time.Second

// reaper collects orphans. The code that starts a child also waits for it, so the reaper peeks at zombies (WNOWAIT) and
// collects one only after reapDelay.
type reaper struct {
	log  *slog.Logger
	quit chan struct{}
	done chan struct{}
}

func startReaper(log *slog.Logger) *reaper {
	r := &reaper{log: log, quit: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

func (r *reaper) stop() {
	close(r.quit)
	<-r.done
}

func (r *reaper) run() {
	defer close(r.done)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	look := time.NewTimer(0)
	defer look.Stop()
	seen := 0 // the ended child that was there at the last look
	for {
		select {
		case <-r.quit:
			return
		case <-children:
			if seen == 0 {
				look.Reset(reapDelay)
			}
		case <-look.C:
			if seen = r.collect(seen); seen != 0 {
				look.Reset(reapDelay)
			}
		}
	}
}

// collect reaps the child that was seen at the last look if it is still there, and returns the next
// ended one, or 0.
func (r *reaper) collect(seen int) int {
	for {
		pid := endedChild()
		if pid == 0 || pid != seen {
			return pid
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			r.log.Debug("orphan went by itself", "pid", pid, "error", err)
			return 0
		}
		r.log.Debug("orphan collected", "pid", pid)
	}
}

// endedChild returns the pid of a child that has ended and was not waited for, or 0.
func endedChild() int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	// golang.org/x/sys hides the union. si_pid is its first field, and on all 64-bit architectures the
	// union begins after four 32-bit words (siginfo_t, include/uapi/asm-generic/siginfo.h).
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
}
