// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

func full() Pod {
	return Pod{
		ID: "p", Namespace: "default", BootID: "b", VMM: &Process{PID: 77, StartTime: 5}, StateDir: "/run/coco/x",
		Cgroups: []string{"/sys/fs/cgroup/cpu/a"}, OwnNetNS: "/run/coco/x/netns", NetNS: "/run/netns/n",
		Redirects: []Redirect{{"eth0", "coco0_eth0"}}, Hooks: []Hook{{Path: "/bin/x", Args: []string{"x"}, Timeout: 3}},
		Annotations: map[string]string{"a": "b"},
	}
}

func TestAJournalIsReadAsItWasWritten(t *testing.T) {
	dir := t.TempDir()
	j, err := New(dir, Pod{ID: "p", Namespace: "default", BootID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	want := full()
	if err := j.Update(func(p *Pod) {
		want.Version, want.Bundle = p.Version, p.Bundle
		*p = want
	}); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load() (-want +got):\n%s", diff)
	}
	if _, err := New(dir, Pod{ID: "q"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("New() in a bundle with a journal = %v, want fs.ErrExist", err)
	}
	for range 2 {
		if err := j.Remove(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Load(dir); !errors.Is(err, ErrNone) {
		t.Errorf("Load() without a journal = %v, want ErrNone", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
	}{
		{"another version", `{"version":2}`, "version 2"},
		{"an unknown field", `{"version":1,"extra":1}`, "unknown field"},
		{"two documents", `{"version":1}{}`, "after the end"},
		{"init as VMM", `{"version":1,"vmm":{"pid":1,"startTime":5}}`, "process 1"},
		{"init as virtiofsd", `{"version":1,"virtiofsd":{"pid":1,"startTime":5}}`, "process 1"},
		{"a process without a start", `{"version":1,"vmm":{"pid":9}}`, "started at 0"},
		{"a relative path", `{"version":1,"stateDir":"run"}`, `"run"`},
		{"a path that climbs", `{"version":1,"stateDir":"/run/../etc"}`, "clean"},
		{"the root as state directory", `{"version":1,"stateDir":"/run"}`, "state directory"},
		{"a cgroup elsewhere", `{"version":1,"cgroups":["/home/x"]}`, "not a cgroup"},
		{"a link with a path", `{"version":1,"netns":"/n","redirects":[{"link":"../x","tap":"t"}]}`, "names of links"},
		{"a redirect without namespace", `{"version":1,"redirects":[{"link":"a","tap":"t"}]}`, "without a network namespace"},
		{"too much", strings.Repeat(" ", maxSize+1), "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Decode(strings.NewReader(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Decode() = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	p := full()
	p.Version = Version
	b, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		defer worktest.Bound(t, len(data))()
		p, err := Decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, pr := range []*Process{p.VMM, p.Helper} {
			if pr != nil && pr.PID <= 1 {
				t.Errorf("process %d", pr.PID)
			}
		}
		for _, d := range append(p.Cgroups, p.StateDir) {
			if d != "" && (!filepath.IsAbs(d) || strings.Contains(d, "/../")) {
				t.Errorf("path %q", d)
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 0")
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		_, _ = parseStat(s)
	})
}

func TestKillEndsOurProcessAndNoOther(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.StartTime++
	if err := other.Kill(t.Context()); err != nil {
		t.Errorf("Kill() of another process with this id = %v", err)
	}
	if err := unix.Kill(p.PID, 0); err != nil {
		t.Fatalf("the process with a recycled id was killed: %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("Kill() of a zombie = %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended well")
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("Kill() of what is gone = %v", err)
	}
}

func TestParseStatReadsPastAnyName(t *testing.T) {
	got, err := parseStat("1 (a) R 9) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 0")
	if err != nil || got.state != 'S' || got.start != 42 {
		t.Errorf("parseStat() = %+v, %v", got, err)
	}
}
