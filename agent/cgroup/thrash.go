// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"strconv"
	"time"
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

// pressure is what is known of a group at its limit.
type pressure struct {
	limit, file, faults uint64
}

// thrash follows a group's pressure from look to look.
type thrash struct {
	last, since time.Time
	faults      uint64
	forcing     bool // somebody makes the kernel kill
}

// due says that it is time to look again.
func (t *thrash) due(now time.Time) bool { return !t.forcing && now.Sub(t.last) >= thrashLook }

// look says whether the group has been thrashing for so long that the kernel must be made to kill.
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

// forceOOM makes the kernel's OOM killer choose a process of the group: a limit that is lowered below what cannot be
// taken back has it kill at once. Then the limit is what it was, unless somebody has set another one meanwhile.
func (g Group) forceOOM(limit uint64) error {
	const page = 4096
	low := (limit - limit/thrashShare*2) / page * page
	if err := g.write("memory.max", strconv.FormatUint(low, 10)); err != nil {
		return err
	}
	if g.value("memory.max") != low {
		return nil
	}
	return g.write("memory.max", strconv.FormatUint(limit, 10))
}
