// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shimtest runs the shim under real containerds, with pods of host processes: it tests
// everything between containerd and the pod model, in seconds and without a VM.
package shimtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// versions are the generations of the bootstrap conversation: plain address, JSON, protobuf.
var versions = []string{"1.6", "1.7", "2.1", "2.4"}

func daemon(t *testing.T, version string) *harness.Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containerd")
	}
	prefix := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "no_grpc", "-o",
		filepath.Join(prefix, "bin", "containerd-shim-coco-v2"), "./shim")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test shim: %v\n%s", err, out)
	}
	t.Setenv("COCO_PREFIX", prefix)
	dir, err := os.MkdirTemp("", "d") // short: sockets go there
	if err != nil {
		t.Fatal(err)
	}
	d, err := harness.Start(t.Context(), version, dir)
	if errors.Is(err, harness.ErrAbsent) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Stop(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return d
}

// bed is a daemon and what tests ask of it.
type bed struct {
	*harness.Daemon
	t *testing.T
}

func (b bed) ctr(stdin []byte, args ...string) harness.Result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	return b.CtrInput(ctx, stdin, args...)
}

// run is ctr run with its output and exit code wanted.
func (b bed) run(want string, code int, stdin []byte, id string, args ...string) {
	b.t.Helper()
	all := append([]string{"run", "--rm", "--runtime", harness.Runtime, harness.Image, id}, args...)
	if r := b.ctr(stdin, all...); r.Stdout != want || r.Code != code || r.Err != nil {
		b.t.Errorf("run %q = %.200q, %d, %v (%s), want %.200q, %d", args, r.Stdout, r.Code, r.Err, r.Stderr, want, code)
	}
}

func (b bed) detached(id string, args ...string) {
	b.t.Helper()
	all := append([]string{"run", "-d", "--runtime", harness.Runtime, harness.Image, id}, args...)
	if r := b.ctr(nil, all...); r.Code != 0 {
		b.t.Fatalf("run -d %s: %s", id, r.Stderr)
	}
}

func (b bed) status(id string) string {
	b.t.Helper()
	for line := range strings.Lines(b.ctr(nil, "task", "ls").Stdout) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return ""
}

// becomes waits for a state. containerd's clients have no other way to see one that is not an exit.
func (b bed) becomes(id, want string) {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for b.status(id) != want {
		if time.Now().After(deadline) {
			b.t.Fatalf("task %s is %q after 5 s, want %q", id, b.status(id), want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// noBundles waits until containerd has removed all bundles. That of a shim that died it removes after the task.
func (b bed) noBundles() {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		left, err := os.ReadDir(filepath.Dir(b.bundle("x")))
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Errorf("bundles left after 5 s: %v, %v", left, err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (b bed) remove(id string) {
	b.t.Helper()
	b.ctr(nil, "task", "delete", "--force", id) // may be gone already
	if r := b.ctr(nil, "container", "rm", id); r.Code != 0 {
		b.t.Errorf("container rm %s: %s", id, r.Stderr)
	}
}

func (b bed) bundle(id string) string {
	return filepath.Join(b.Dir, "state", "io.containerd.runtime.v2.task", "default", id)
}

func (b bed) shimPID(id string) int {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.bundle(id), "shim.pid"))
	var p struct{ PID int }
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return p.PID
}

func TestUnderContainerd(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			b := bed{daemon(t, version), t}
			b.basics()
			b.restart()
			b.shimDies()
			b.noBundles()
		})
	}
}

func (b bed) basics() {
	b.t.Helper()
	b.run("hi\n", 0, nil, "a1", "/bin/busybox", "echo", "hi")
	b.run("", 3, nil, "a2", "/bin/busybox", "sh", "-c", "exit 3")
	b.run("", 137, nil, "a3", "/bin/busybox", "sh", "-c", "kill -9 $$")
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	b.detached("a4", "/bin/busybox", "sleep", "1000")
	r := b.ctr(data, "task", "exec", "--exec-id", "x", "a4", "/bin/busybox", "cat")
	if !bytes.Equal([]byte(r.Stdout), data) || r.Code != 0 {
		b.t.Errorf("cat gives %d bytes of %d, %d (%s)", len(r.Stdout), len(data), r.Code, r.Stderr)
	}
	if r := b.ctr(nil, "task", "metrics", "a4"); r.Code != 0 || !strings.Contains(r.Stdout, "pids.current") {
		b.t.Errorf("metrics = %s %s", r.Stdout, r.Stderr)
	}
	if r := b.ctr(nil, "task", "exec", "--exec-id", "y", "a4", "/no/such"); r.Code == 0 ||
		!strings.Contains(r.Stderr, "/no/such") {
		b.t.Errorf("exec of a missing program = %d %s", r.Code, r.Stderr)
	}
	b.remove("a4")
}

func (b bed) restart() {
	b.t.Helper()
	b.detached("b1", "/bin/busybox", "sh", "-c", "while [ ! -e /end ]; do sleep 0.1; done; exit 7")
	b.Kill()
	if err := b.Restart(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if s := b.status("b1"); s != "RUNNING" {
		b.t.Errorf("after the daemon's restart the task is %q", s)
	}
	if r := b.ctr(nil, "task", "exec", "--exec-id", "x", "b1", "/bin/busybox", "touch", "/end"); r.Code != 0 {
		b.t.Errorf("exec after the restart: %s", r.Stderr)
	}
	b.becomes("b1", "STOPPED")
	if r := b.ctr(nil, "task", "delete", "b1"); !strings.Contains(r.Stderr, "exit code 7") {
		b.t.Errorf("task delete = %s, want exit code 7", r.Stderr)
	}
	b.remove("b1")
}

func (b bed) shimDies() {
	b.t.Helper()
	b.detached("c1", "/bin/busybox", "sleep", "1000")
	if err := syscall.Kill(b.shimPID("c1"), syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	b.becomes("c1", "")
	b.remove("c1")
}
