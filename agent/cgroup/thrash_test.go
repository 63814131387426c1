// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestThrash(t *testing.T) {
	const mib = 1 << 20
	bad := func(i int) pressure { return pressure{20 * mib, 100 << 10, uint64(100 * i)} }
	for name, tt := range map[string]struct {
		at   func(i int) pressure
		want bool // by the tenth second
	}{
		"nothing of files left, and they are read again and again": {bad, true},
		"plenty of files":       {func(i int) pressure { return pressure{20 * mib, mib, uint64(100 * i)} }, false},
		"nothing is read again": {func(int) pressure { return pressure{20 * mib, 0, 100} }, false},
		"no limit":              {func(i int) pressure { return pressure{^uint64(0), 0, uint64(100 * i)} }, false},
		"it had files in between": {func(i int) pressure {
			p := bad(i)
			if i == 5 {
				p.file = 2 * mib
			}
			return p
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var th thrash
			start, got := time.Now(), false
			for i := range 10 {
				now := start.Add(time.Duration(i) * time.Second)
				if !th.due(now) || th.due(now.Add(-time.Hour)) && i > 0 {
					t.Fatalf("second %d: not due, or too soon", i)
				}
				got = th.look(now, tt.at(i)) || got
				if got && i < 6 {
					t.Fatalf("after %d seconds already", i)
				}
			}
			if got != tt.want {
				t.Errorf("look() = %t, want %t", got, tt.want)
			}
		})
	}
}

// The largest process is ended and no other, unless oom_score_adj says so.
func TestTheLargestIsKilled(t *testing.T) {
	if os.Getenv("COCO_TEST_LARGE") != "" {
		ballast := make([]byte, 64<<20)
		for i := range ballast {
			ballast[i] = byte(i)
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
		runtime.KeepAlive(ballast)
		return
	}
	start := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "COCO_TEST_LARGE=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	large, small, favourite := start(os.Args[0], "-test.run", t.Name()), start("cat", "/dev/zero"),
		start("cat", "/dev/zero")
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", favourite.Process.Pid), []byte("1000"), 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, want := range []*exec.Cmd{favourite, large, small} {
		procs := fmt.Sprintf("%d\n%d\n%d\n", large.Process.Pid, small.Process.Pid, favourite.Process.Pid)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(procs), 0o600); err != nil {
			t.Fatal(err)
		}
		told := 0
		if err := (Group{dir}).killLargest(1<<30, func() { told++ }); err != nil || told != 1 {
			t.Fatalf("killLargest() = %v, %d times told", err, told)
		}
		if err := want.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("%v: %v, want that it was killed", want.Args, err)
		}
	}
	if err := (Group{dir}).killLargest(1<<30, func() { t.Error("nobody is left") }); err != nil {
		t.Error(err)
	}
}
