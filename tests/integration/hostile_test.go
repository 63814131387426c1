// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

const (
	mostLog    = 1 << 20  // bytes that our shims may add to containerd's log
	mostMemory = 16 << 10 // KiB of a shim that had a moment to give memory back; streams that nobody reads are still full
	mostAtOnce = 24 << 10 // KiB of a shim that is being lied to
	stopWithin = 3 * time.Second
)

// hostileTime is how long the guest lies for: `make hostile` makes it ten minutes.
func hostileTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("COCO_HOSTILE_TIME")
	if text == "" {
		return 3 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var hostileInitrd = sync.OnceValues(func() ([]byte, error) {
	return initrdWith("init", "./tests/integration/testdata/hostile")
})

// hostile is a configuration whose guest lies.
func hostile(t *testing.T, mode string) (config string) {
	t.Helper()
	data, err := hostileInitrd()
	if err != nil {
		t.Fatal(err)
	}
	initrd, config := filepath.Join(t.TempDir(), "initrd.img"), filepath.Join(t.TempDir(), "config.toml")
	write(t, initrd, string(data))
	text := fmt.Sprintf("[hypervisor]\ninitrd = %q\nkernel_params = %q\n[runtime]\ntemplate = \"off\"\n"+
		"stop_timeout = %q\n", initrd, "hostile="+mode, stopWithin)
	if mode == "silence" {
		text += "health_interval = \"1s\"\nhealth_misses = 5\n"
	}
	write(t, config, text)
	return config
}

// initrdWith is the guest image's initramfs with a program on top.
func initrdWith(name, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "coco-init")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, name)
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "no_grpc", "-ldflags", "-s -w",
		"-o", exe, pkg)
	build.Dir, build.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	base, err := os.ReadFile(filepath.Join(testvm.GuestDir(), "initrd.img"))
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(base)
	cpioEntry(b, name, 0o100755, program)
	cpioEntry(b, "TRAILER!!!", 0, nil)
	return b.Bytes(), nil
}

// A guest that was taken over can be ended, costs its host little, and disturbs nobody else.
func TestAHostileAgent(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	before := logSize(t, d)
	t.Run("lies", func(t *testing.T) {
		id, shim, vmm := besiege(t, d, "lies")
		end := time.Now().Add(hostileTime(t))
		for n := 0; n == 0 || time.Now().Before(end); n++ {
			pester(t, d, id, n)
			others(t, d)
			if u := usageOf(t, shim); u.rssKiB > mostAtOnce {
				t.Fatalf("after %d rounds the shim has %+v, at most %d KiB are allowed", n, u, mostAtOnce)
			}
		}
		calm(t, shim)
		must(t, d, "task", "kill", "-s", "SIGKILL", id) // "yes", says the guest
		deleted(t, d, id, vmm)
	})
	t.Run("ends by itself", func(t *testing.T) {
		for _, mode := range []string{"answers", "frames", "stream", "silence"} {
			t.Run(mode, func(t *testing.T) {
				t.Parallel()
				id, _, vmm := besiege(t, d, mode)
				deleted(t, d, id, vmm) // nobody had to ask
			})
		}
	})
	switch grown := logSize(t, d) - before; {
	case grown == 0:
		t.Error("no line of the log is a shim's: the pattern is wrong")
	case grown > mostLog:
		t.Errorf("the log has grown by %d bytes, at most %d are allowed", grown, mostLog)
	default:
		t.Logf("the log has grown by %d bytes", grown)
	}
}

// besiege starts a container in a hostile guest, and returns the processes behind it.
func besiege(t *testing.T, d *harness.Daemon, mode string) (id string, shim, vmm int) {
	t.Helper()
	id = newID(t)
	config := hostile(t, mode)
	t.Cleanup(func() { remove(t, d, id) })
	// The guest may end its VM before the start is answered.
	r := ctr(t, d, "run", "-d", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image, id,
		"sleep", "1000")
	if r.Code != 0 && mode == "lies" {
		t.Fatalf("run: %+v", r)
	}
	shim, vmm, err := harness.Pids(id)
	if err != nil && mode == "lies" {
		t.Fatal(err)
	}
	return id, shim, vmm
}

// pester asks the guest for what it lies about.
func pester(t *testing.T, d *harness.Daemon, id string, n int) {
	t.Helper()
	for _, args := range [][]string{
		{"task", "exec", "--exec-id", fmt.Sprintf("x%d", n), id, "true"},
		{"task", "metrics", id},
		{"task", "ps", id},
		{"task", "kill", "-s", "SIGTERM", id},
	} {
		r := ctr(t, d, args...)
		if len(r.Stderr) > 16<<10 || strings.ContainsAny(r.Stderr, "\x1b") {
			t.Errorf("ctr %v prints %d bytes: %.200q", args, len(r.Stderr), r.Stderr)
		}
	}
}

// calm waits until the shim, which nobody asks for anything now, has given back what the lies have cost.
func calm(t *testing.T, shim int) {
	t.Helper()
	u := usageOf(t, shim)
	for end := time.Now().Add(20 * time.Second); u.rssKiB > mostMemory && time.Now().Before(end); u = usageOf(t, shim) {
		time.Sleep(100 * time.Millisecond) // there is no event of it
	}
	if u.rssKiB > mostMemory {
		t.Errorf("the shim has %+v, at most %d KiB are allowed", u, mostMemory)
	} else {
		t.Logf("the shim has %+v", u)
	}
}

// others are served as if nothing happened: a container under runc writes a file and ends with a code of its own. Its
// output is no witness, since ctr loses that now and then.
func others(t *testing.T, d *harness.Daemon) {
	t.Helper()
	const code = 7
	dir, id := t.TempDir(), newID(t)
	r := ctr(t, d, "run", "--rm", "--runtime", harness.RuncRuntime,
		"--mount", "type=bind,src="+dir+",dst=/witness,options=rbind:rw", harness.Image, id,
		"sh", "-c", fmt.Sprintf("echo %s undisturbed >/witness/words; exit %d", id, code))
	if r.Code != code {
		t.Errorf("another container: %+v, want the exit code %d", r, code)
	}
	got, err := os.ReadFile(filepath.Join(dir, "words"))
	if want := id + " undisturbed\n"; err != nil || string(got) != want {
		t.Errorf("another container wrote %q, %v, want %q", got, err, want)
	}
}

// deleted waits for the VM's end, which somebody else has brought about, and removes the container.
func deleted(t *testing.T, d *harness.Daemon, id string, vmm int) {
	t.Helper()
	if vmm != 0 {
		awaitVMM(t, vmm)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), perCommand)
	defer cancel()
	r := d.Ctr(ctx, "task", "delete", "-f", id) // by force, as containerd may not know of the end yet
	if r.Err != nil || !strings.Contains(r.Stderr, "exit code 137") && !strings.Contains(r.Stderr, "not found") {
		t.Errorf("delete after %s: %+v, want the exit code 137", time.Since(start), r)
	}
	others(t, d)
}

// awaitVMM waits until a VMM has ended.
func awaitVMM(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has
	}
	defer func() { _ = unix.Close(fd) }()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(perCommand); time.Now().Before(end); {
		if n, err := unix.Poll(p, 1000); n > 0 && err == nil {
			return
		}
	}
	t.Fatalf("the VMM %d lives on", pid)
}

// logSize is how many bytes our shims have written to the daemon's log, which has the daemon's and runc's lines too.
func logSize(t *testing.T, d *harness.Daemon) int64 {
	t.Helper()
	b, err := os.ReadFile(d.Log())
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte("runtime="+harness.Runtime)) {
			n += int64(len(line))
		}
	}
	return n
}
