// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package integration runs the installed shim under real containerd daemons with real VMs, and
// compares the results that a user sees with those under runc.
package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/tests/harness"
)

// primary is the containerd that most tests use.
const primary = "2.4"

// perCommand bounds one ctr command; a VM boot under TCG takes seconds.
const perCommand = 90 * time.Second

var daemons struct {
	sync.Mutex
	byVersion map[string]*harness.Daemon
	dirs      []string
}

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, d := range daemons.byVersion {
		if err := d.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	for _, dir := range daemons.dirs {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// daemon returns the shared daemon of a version, started on first use.
func daemon(t *testing.T, version string) *harness.Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		absent(t, "these tests start containerd and VMs: run as root")
	}
	daemons.Lock()
	defer daemons.Unlock()
	if d := daemons.byVersion[version]; d != nil {
		return d
	}
	dir, err := os.MkdirTemp("/var/tmp", "coco-it-")
	if err != nil {
		t.Fatal(err)
	}
	daemons.dirs = append(daemons.dirs, dir)
	d, err := harness.Start(context.Background(), version, dir)
	if errors.Is(err, harness.ErrAbsent) {
		absent(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	if daemons.byVersion == nil {
		daemons.byVersion = map[string]*harness.Daemon{}
	}
	daemons.byVersion[version] = d
	return d
}

// absent skips, or fails where everything is required, as in CI.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COCO_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

var ids atomic.Int64

// newID returns a container id that no other test uses.
func newID(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("it-%d-%d", os.Getpid(), ids.Add(1))
}

// ctr runs a ctr command that must end in time, with any exit code.
func ctr(t *testing.T, d *harness.Daemon, args ...string) harness.Result {
	t.Helper()
	return ctrInput(t, d, nil, args...)
}

func ctrInput(t *testing.T, d *harness.Daemon, stdin []byte, args ...string) harness.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), perCommand)
	defer cancel()
	r := d.CtrInput(ctx, stdin, args...)
	if r.Err != nil {
		t.Fatalf("ctr %s: %v\nstderr: %s", strings.Join(args, " "), r.Err, r.Stderr)
	}
	return r
}

// must is ctr for a command that has to succeed.
func must(t *testing.T, d *harness.Daemon, args ...string) string {
	t.Helper()
	r := ctr(t, d, args...)
	if r.Code != 0 {
		t.Fatalf("ctr %s: exit %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// bothWays runs a test with VMs that boot, and with VMs that start from a template. flags are for ctr run.
func bothWays(t *testing.T, test func(t *testing.T, flags []string)) {
	t.Helper()
	for _, mode := range []string{configs.TemplateOff, configs.TemplatePrivate} {
		t.Run(mode, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "config.toml")
			write(t, config, fmt.Sprintf("[runtime]\ntemplate = %q\n", mode))
			test(t, []string{"--runtime-config-path", config})
		})
	}
}

// detached starts a container in the background and removes it when the test ends.
func detached(t *testing.T, d *harness.Daemon, runtime string, args ...string) string {
	t.Helper()
	id := newID(t)
	flags, rest := splitFlags(args)
	cmd := append([]string{"run", "-d", "--runtime", runtime}, flags...)
	cmd = append(cmd, harness.Image, id)
	must(t, d, append(cmd, rest...)...)
	t.Cleanup(func() { remove(t, d, id) })
	return id
}

// splitFlags splits "flags -- command" at the double dash; without one all is the command.
func splitFlags(args []string) (flags, command []string) {
	for i, a := range args {
		if a == "--" {
			return args[:i], args[i+1:]
		}
	}
	return nil, args
}

// remove kills and deletes a container in any state.
func remove(t *testing.T, d *harness.Daemon, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), perCommand)
	defer cancel()
	d.Ctr(ctx, "task", "rm", "-f", id)
	if r := d.Ctr(ctx, "container", "rm", id); r.Code != 0 && !strings.Contains(r.Stderr, "not found") {
		t.Errorf("remove container %s: %s", id, r.Stderr)
	}
}

// noLeaks fails the test if it leaves anything on the host that was not there when noLeaks was called.
func noLeaks(t *testing.T) {
	t.Helper()
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := harness.Leaks(context.Background(), before, 10*time.Second)
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}
