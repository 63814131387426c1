// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package procinfo reads a process's use of resources from /proc.
package procinfo

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is a process's use of CPU and memory. Sizes are bytes.
type Usage struct {
	CPUUser, CPUSystem time.Duration
	RSS                uint64 // the sum of the next three
	Anon, File, Shmem  uint64
	Threads            uint64
	MinorFaults        uint64
	MajorFaults        uint64
}

// tick is a clock tick of /proc: USER_HZ is 100 on every Linux (proc_pid_stat(5)).
const tick = time.Second / 100

// Read measures a process. pid 0 is the caller.
func Read(pid int) (Usage, error) {
	dir := "/proc/self"
	if pid != 0 {
		dir = "/proc/" + strconv.Itoa(pid)
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Usage{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Usage{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	u, err := parseStat(string(stat))
	if err != nil {
		return Usage{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	parseStatus(string(status), &u)
	return u, nil
}

// parseStat reads proc_pid_stat(5): faults are fields 10 and 12, times 14 and 15. The name in
// parentheses may hold anything, so fields are counted after it; state is field 3.
func parseStat(s string) (Usage, error) {
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 13 {
		return Usage{}, fmt.Errorf("its stat has %d fields after the name", len(f))
	}
	var n [4]uint64
	for i, at := range []int{10, 12, 14, 15} {
		v, err := strconv.ParseUint(f[at-3], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("field %d of its stat: %w", at, err)
		}
		n[i] = v
	}
	return Usage{
		MinorFaults: n[0], MajorFaults: n[1],
		CPUUser: time.Duration(n[2]) * tick, CPUSystem: time.Duration(n[3]) * tick, //nolint:gosec // ticks since a boot
	}, nil
}

// parseStatus reads the sizes of proc_pid_status(5). A process that is a zombie has none.
func parseStatus(s string, u *Usage) {
	for line := range strings.Lines(s) {
		key, rest, _ := strings.Cut(line, ":")
		into, unit := map[string]*uint64{
			"VmRSS": &u.RSS, "RssAnon": &u.Anon, "RssFile": &u.File, "RssShmem": &u.Shmem, "Threads": &u.Threads,
		}[key], uint64(1)
		if into == nil {
			continue
		}
		if strings.HasSuffix(strings.TrimSpace(rest), " kB") {
			unit = 1 << 10
		}
		if f := strings.Fields(rest); len(f) > 0 {
			v, err := strconv.ParseUint(f[0], 10, 64)
			if err == nil {
				*into = v * unit
			}
		}
	}
}

// Memory is where a VMM's memory goes. Sizes are resident bytes.
type Memory struct {
	Guest     uint64 // the guest's RAM, as far as the guest has used it
	Generated uint64 // code that an emulator has generated: anonymous and executable
	Files     uint64 // pages of files that were not written: page cache, which processes share
	Own       uint64 // everything else: heap, device state, stacks
}

// VMMMemory measures a VMM whose guest has so many bytes of RAM. The RAM is the largest mapping, if it is
// at least that large.
func VMMMemory(pid int, ram uint64) (Memory, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		return Memory{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	return parseSmaps(string(data), ram), nil
}

// mapping is an entry of proc_pid_smaps(5).
type mapping struct {
	size, rss, anon   uint64
	executable, named bool // named: of a file, a memfd or the kernel's
}

// parseSmaps reads proc_pid_smaps(5): per mapping a line "start-end perms offset dev inode path" and then
// lines "Key: n kB".
func parseSmaps(s string, ram uint64) Memory {
	var all []mapping
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"):
			all = append(all, mapping{executable: strings.Contains(f[1], "x"), named: len(f) > 5})
		case len(f) != 3 || len(all) == 0:
		case f[0] == "Size:":
			all[len(all)-1].size = kib(f[1])
		case f[0] == "Rss:":
			all[len(all)-1].rss = kib(f[1])
		case f[0] == "Anonymous:":
			all[len(all)-1].anon = kib(f[1])
		}
	}
	guest := -1
	for i, m := range all {
		if m.size >= ram && !m.executable && (guest < 0 || m.size > all[guest].size) {
			guest = i
		}
	}
	var out Memory
	for i, m := range all {
		switch {
		case i == guest:
			out.Guest += m.rss
		case m.executable && !m.named:
			out.Generated += m.rss
		default:
			out.Own += m.anon
			out.Files += m.rss - min(m.anon, m.rss)
		}
	}
	return out
}

func kib(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 54)
	if err != nil {
		return 0
	}
	return n << 10
}

// Stopped says whether a process cannot run because somebody stopped it, traces it or froze a cgroup of it.
func Stopped(pid int) (bool, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return false, fmt.Errorf("state of process %d: %w", pid, err)
	}
	if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 0 &&
		strings.EqualFold(f[0], "T") {
		return true, nil
	}
	groups, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return false, fmt.Errorf("cgroups of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 {
			continue
		}
		for _, file := range frozenFiles(f[1], f[2]) {
			text, err := os.ReadFile(file)
			if err == nil && (strings.Contains(string(text), "frozen 1") || strings.HasPrefix(string(text), "FROZEN")) {
				return true, nil
			}
		}
	}
	return false, nil
}

// frozenFiles tell whether a group is frozen: cgroup.events in a unified hierarchy, freezer.state in version 1.
func frozenFiles(controllers, path string) []string {
	const root = "/sys/fs/cgroup"
	switch controllers {
	case "":
		return []string{root + path + "/cgroup.events", root + "/unified" + path + "/cgroup.events"}
	case "freezer":
		return []string{root + "/freezer" + path + "/freezer.state"}
	}
	return nil
}
