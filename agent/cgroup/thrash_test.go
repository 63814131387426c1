// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
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

func TestForceOOMRestoresTheLimit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "memory.max")
	if err := os.WriteFile(file, []byte("20971520\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Group{dir}).forceOOM(20971520); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != "20971520" {
		t.Errorf("memory.max = %q, %v", got, err)
	}
	if err := (Group{filepath.Join(dir, "gone")}).forceOOM(1 << 20); err == nil {
		t.Error("a group that is gone was changed")
	}
}
