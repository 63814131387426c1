// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A group at its limit whose memory is nearly all anonymous can live on without getting anywhere: the kernel takes
// the pages of the program that runs, reads them again at the next instruction, and calls that progress, so the OOM
// killer is not asked. On a host those pages are in the cache already and count elsewhere; in a guest they are the
// container's own, and each read is verified.
const (
	thrashLook   = time.Second     // how often a group at its limit is looked at
	thrashTime   = 5 * time.Second // how long it must have been so
	thrashShare  = 32              // the part of the limit that pages of files have at most
	thrashFaults = 4               // pages that had to be read again since the last look
)

// pressure has the counters of a group at its memory limit.
type pressure struct {
	limit, file, faults uint64
}

// thrash follows a group's pressure from look to look.
type thrash struct {
	last, since time.Time
	faults      uint64
}

// due reports whether it is time to look again.
func (t *thrash) due(now time.Time) bool { return now.Sub(t.last) >= thrashLook }

// look reports whether the group has been thrashing for so long that a process must be killed.
func (t *thrash) look(now time.Time, p pressure) bool {
	reread := p.faults - t.faults
	first := t.last.IsZero()
	t.last, t.faults = now, p.faults
	if first || p.limit == 0 || p.limit == ^uint64(0) || p.file > p.limit/thrashShare || reread < thrashFaults {
		t.since = time.Time{}
		return false
	}
	if t.since.IsZero() {
		t.since = now
	}
	return now.Sub(t.since) >= thrashTime
}

// pressure reads it.
func (g Group) pressure() pressure {
	st := g.keys("memory.stat")
	return pressure{limit: g.value("memory.max"), file: st["active_file"] + st["inactive_file"], faults: st["pgmajfault"]}
}

// killLargest ends the process that the kernel's OOM killer would choose, and no other: the one with the most
// memory, where oom_score_adj counts as thousandths of the limit (proc(5)). before is called when it is chosen.
// Lowering memory.max for a moment instead has the kernel kill, but also the next process when the first one is slow to
// end.
func (g Group) killLargest(limit uint64, before func()) error {
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	victim, most := -1, int64(0)
	for _, pid := range pids {
		score, ok := badness(int(pid), limit)
		if !ok || victim >= 0 && score <= most {
			continue
		}
		if victim >= 0 {
			_ = unix.Close(victim) // nothing was written
		}
		if victim, err = unix.PidfdOpen(int(pid), 0); err != nil {
			victim = -1 // it has ended
			continue
		}
		most = score
	}
	if victim < 0 {
		return nil
	}
	defer func() { _ = unix.Close(victim) }() // nothing was written
	before()
	return unix.PidfdSendSignal(victim, unix.SIGKILL, nil, 0)
}

// badness is a process's claim to be killed; none for a process that must not be.
func badness(pid int, limit uint64) (int64, bool) {
	const exempt, thousand = -1000, 1000
	dir := fmt.Sprintf("/proc/%d/", pid)
	adj, err := number(dir+"oom_score_adj", 0)
	if err != nil || adj == exempt {
		return 0, false
	}
	pages, err := number(dir+"statm", 1) // resident
	if err != nil || pages == 0 {        // without memory it is a zombie
		return 0, false
	}
	return pages*int64(os.Getpagesize()) + adj*int64(limit/thousand), true //nolint:gosec // a limit of memory
}

// number reads one of a file's numbers.
func number(file string, field int) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) <= field {
		return 0, fmt.Errorf("%s has no field %d", file, field)
	}
	return strconv.ParseInt(f[field], 10, 64)
}
