// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package procinfo

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	u, err := parseStat("7 (a) b (c)) S 1 7 7 0 -1 4194560 12 0 3 0 150 25 0 0 20 0 3 0 100 1 2")
	if err != nil {
		t.Fatal(err)
	}
	parseStatus("Name:\tx\nVmRSS:\t  12 kB\nRssAnon:\t 4 kB\nRssFile:\t 6 kB\nRssShmem:\t 2 kB\nThreads:\t3\n", &u)
	want := Usage{
		CPUUser: 1500 * time.Millisecond, CPUSystem: 250 * time.Millisecond, MinorFaults: 12, MajorFaults: 3,
		RSS: 12 << 10, Anon: 4 << 10, File: 6 << 10, Shmem: 2 << 10, Threads: 3,
	}
	if diff := cmp.Diff(want, u); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "7 (x) S 1 2", "7 (x) S 1 7 7 0 -1 4194560 a 0 3 0 150 25 0 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) succeeds", bad)
		}
	}
}

func TestRead(t *testing.T) {
	for _, pid := range []int{0, os.Getpid()} {
		if u, err := Read(pid); err != nil || u.RSS == 0 || u.Anon == 0 || u.Threads == 0 {
			t.Errorf("Read(%d) = %+v, %v", pid, u, err)
		}
	}
	if _, err := Read(1 << 30); err == nil {
		t.Error("a process that is not there can be measured")
	}
}

func TestParseSmaps(t *testing.T) {
	const smaps = `55d0-55d1 r-xp 00000000 08:01 12 /usr/bin/qemu
Size:               4096 kB
Rss:                3000 kB
Anonymous:           100 kB
7f00-7f01 rw-p 00000000 00:00 0
Size:             655360 kB
KernelPageSize:        4 kB
Rss:              200000 kB
Anonymous:        200000 kB
VmFlags: rd wr
7f02-7f03 rwxp 00000000 00:00 0
Size:             131072 kB
Rss:               50000 kB
Anonymous:         50000 kB
7f04-7f05 rw-p 00000000 00:00 0 [heap]
Size:               9000 kB
Rss:                7000 kB
Anonymous:          7000 kB
`
	want := Memory{Guest: 200000 << 10, Generated: 50000 << 10, Files: 2900 << 10, Own: 7100 << 10}
	if got := parseSmaps(smaps, 640<<20); got != want {
		t.Errorf("parseSmaps = %+v, want %+v", got, want)
	}
	if got := parseSmaps(smaps, 1<<40); got.Guest != 0 || got.Own != 207100<<10 {
		t.Errorf("parseSmaps without RAM of that size = %+v", got)
	}
}

// A VMM that somebody has stopped is no VMM that hangs.
func TestStopped(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	becomes := func(sig unix.Signal, options int, want bool) {
		t.Helper()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(pid, nil, options, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := Stopped(pid); got != want || err != nil {
			t.Errorf("after %v Stopped = %v, %v", sig, got, err)
		}
	}
	becomes(unix.SIGSTOP, unix.WUNTRACED, true)
	becomes(unix.SIGCONT, unix.WCONTINUED, false)
	if _, err := Stopped(1 << 30); err == nil {
		t.Error("a process that is not there has a state")
	}
}
