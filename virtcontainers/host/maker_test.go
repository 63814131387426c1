// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/testvm"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
)

// A host whose cgroups cannot be read gets no template, and the log says why; nothing fails.
func TestAMakerThatCannotBeStartedIsSaid(t *testing.T) {
	var log bytes.Buffer
	c := configs.Default()
	c.Runtime.StateDir = t.TempDir()
	m := newMaker(c, filepath.Join(t.TempDir(), "shim"), slog.New(slog.NewTextHandler(&log, nil)))
	m.unable = errors.New("no cgroups are mounted")
	m.missing("a key", hypervisor.VMSpec{})
	for _, want := range []string{"no template is made", "no cgroups are mounted"} {
		if text := log.String(); !strings.Contains(text, want) {
			t.Errorf("log: %q, want %q", text, want)
		}
	}
}

// A maker gets all that it needs from its standard input, from whatever cgroup it was started.
func TestTheMakerIsToldWhatToMake(t *testing.T) {
	testvm.Need(t, testvm.Root)
	dir := t.TempDir()
	program := filepath.Join(dir, "coco")
	script := "#!/bin/sh\nprintf %s \"$*\" >" + dir + "/arg\ncat >" + dir + "/order\ncat /proc/self/cgroup >" + dir +
		"/new\nmv " + dir + "/new " + dir + "/cgroup\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := configs.Default()
	c.Files, c.Runtime.Rlimits = []string{"/etc/coco.toml"}, []string{"nofile=1:2"}
	m := newMaker(c, filepath.Join(dir, "shim"), slog.New(slog.DiscardHandler))
	if m.unable != nil {
		t.Fatal(m.unable)
	}
	hs, err := cgroups.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	hs = slices.DeleteFunc(hs, func(h cgroups.Hierarchy) bool { // a group of v1's is of no use before it has processors
		return strings.Contains(h.Options, "cpuset")
	})
	name := fmt.Sprintf("coco-test-maker-%d", os.Getpid())
	dirs, leaves, err := cgroups.Plan(hs, "/"+name, "")
	if err != nil || len(leaves) == 0 {
		t.Fatalf("cgroups %q: %v", leaves, err)
	}
	t.Cleanup(func() {
		if err := cgroups.Remove(context.WithoutCancel(t.Context()), dirs); err != nil {
			t.Error(err)
		}
	})
	for _, leaf := range leaves {
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.trees, m.home = hs, leaves
	want := order{c, plan.Shape{VCPUs: 3, MemoryMiB: 640}, "a key"}
	pid, err := m.Start(m.exe, MakerArgs, want)
	if err != nil {
		t.Fatal(err)
	}
	text := eventually(t, filepath.Join(dir, "cgroup"))
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
	if !strings.Contains(text, name) {
		t.Errorf("it reads its order in %q, not in %s", text, name)
	}
	var got order
	b, err := os.ReadFile(filepath.Join(dir, "order"))
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("it was told something else: %s", d)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "arg")); err != nil || string(b) != "template background" {
		t.Errorf("its argument is %q: %v", b, err)
	}
	m.exe = filepath.Join(dir, "absent")
	if _, err := m.Start(m.exe, MakerArgs, want); err == nil || !strings.Contains(err.Error(), "in the background") {
		t.Errorf("a program that is absent: %v", err)
	}
}

// eventually reads a file that appears.
func eventually(t *testing.T, name string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(name)
		if err == nil {
			return string(b)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestATemplateTakesNoMemoryThatOthersNeed(t *testing.T) {
	if err := EnoughMemory(1); err != nil {
		t.Error(err)
	}
	if err := EnoughMemory(1 << 40); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a VM that is larger than any host: %v", err)
	}
}
