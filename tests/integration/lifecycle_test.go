// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/coco-shim/coco/tests/harness"
)

func TestEveryContainerdRunsAContainer(t *testing.T) {
	for _, v := range []string{"1.6", "1.7", "2.1", "2.4"} {
		t.Run(v, func(t *testing.T) {
			d := daemon(t, v)
			noLeaks(t)
			id := detached(t, d, harness.Runtime, "--env", "A=b", "--", "sleep", "1000")
			if got := must(t, d, "task", "exec", "--exec-id", "e1", id, "sh", "-c", "echo $A; uname -r"); !strings.HasPrefix(got,
				"b\n") {
				t.Errorf("exec printed %q", got)
			}
			if got := must(t, d, "task", "ls"); !regexp.MustCompile(id + `\s+\d+\s+RUNNING`).MatchString(got) {
				t.Errorf("task ls = %q", got)
			}
			checkConfined(t, id)
			must(t, d, "task", "kill", "-s", "SIGKILL", id)
			if code := waitStopped(t, d, id); code != 137 {
				t.Errorf("exit status after SIGKILL = %d, want 137", code)
			}
		})
	}
}

// checkConfined looks at what the VMM could do to the host if its guest broke out.
func checkConfined(t *testing.T, id string) {
	t.Helper()
	shim, vmm, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.ShimConfined(shim, vmm); err != nil {
		t.Errorf("the shim, pid %d: %v", shim, err)
	}
	if _, err := harness.Confined(vmm); err != nil {
		t.Errorf("the VMM, pid %d: %v", vmm, err)
	}
}

func TestGuestHasAKernelOfItsOwn(t *testing.T) {
	d := daemon(t, primary)
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	// The parameter comes from the kernel's command line, which nobody but the agent applies to a module.
	script := "uname -r; cat /sys/module/scsi_mod/parameters/scan"
	out := must(t, d, "run", "--rm", "--runtime", harness.Runtime, harness.Image, newID(t), "sh", "-c", script)
	guest, scan, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if guest == strings.TrimSpace(string(host)) || guest == "" {
		t.Errorf("uname -r in the container = %q, on the host %q", guest, host)
	}
	if scan != "none" {
		t.Errorf("the guest looks for disks that nobody announced: scsi_mod.scan = %q", scan)
	}
}

func TestExecParity(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	coco := detached(t, d, harness.Runtime, "sleep", "1000")
	runc := detached(t, d, harness.RuncRuntime, "sleep", "1000")
	for _, c := range []struct {
		name  string
		flags []string
		cmd   []string
		stdin string
	}{
		{name: "output", cmd: []string{"echo", "hi"}},
		{name: "stderr and exit code", cmd: []string{"sh", "-c", "echo no >&2; exit 3"}},
		{name: "signal", cmd: []string{"sh", "-c", "kill -KILL $$"}},
		{name: "stdin", cmd: []string{"cat"}, stdin: "through\nexec"},
		{name: "cwd", flags: []string{"--cwd", "/tmp"}, cmd: []string{"pwd"}},
		{name: "user", flags: []string{"--user", "1000"}, cmd: []string{"id", "-u"}},
		{name: "processes are visible", cmd: []string{"sh", "-c", "ps | grep -c 'sleep 1000$'"}},
		{name: "missing command", cmd: []string{"/nope"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			see := func(id string) visible {
				args := append([]string{"task", "exec", "--exec-id", newID(t)}, c.flags...)
				r := ctrInput(t, d, []byte(c.stdin), append(append(args, id), c.cmd...)...)
				return visible{r.Stdout, r.Stderr, r.Code}
			}
			want, got := see(runc), see(coco)
			if c.name == "missing command" {
				if got.Code == 0 || !strings.Contains(got.Stderr, "/nope") {
					t.Errorf("got %+v, want a failure that names the command", got)
				}
				return
			}
			if got != want {
				t.Errorf("exec: coco %+v, runc %+v", got, want)
			}
		})
	}
}

func TestSixtyFourMebibytesEachWayBitForBit(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	data := make([]byte, 64<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r := d.CtrInput(ctx, data, "run", "--rm", "--runtime", harness.Runtime, harness.Image, newID(t), "cat")
	if r.Err != nil || r.Code != 0 {
		t.Fatalf("cat: exit %d, %v: %s", r.Code, r.Err, r.Stderr)
	}
	if sha256.Sum256([]byte(r.Stdout)) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back for %d, or they differ", len(r.Stdout), len(data))
	}
	t.Logf("64 MiB in and out in %v", r.Took.Round(time.Millisecond))
}

// terminal runs a ctr command on a new pseudo terminal, types input, and returns what it showed.
func terminal(t *testing.T, d *harness.Daemon, size console.WinSize, input string, args ...string) (string, int) {
	t.Helper()
	pty, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	if err := pty.Resize(size); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), perCommand)
	defer cancel()
	cmd := d.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		// EIO says that the last writer is gone, and the first may come before its last words (agent/stdio, read)
		for range 2 {
			_, _ = io.Copy(&out, pty)
		}
	}()
	if _, err := pty.Write([]byte(input)); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	<-read
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func TestTerminals(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	size := console.WinSize{Height: 33, Width: 99}
	script := "until stty size 2>/dev/null; do sleep 0.1; done; tty; echo typed-$((40+2)); exit 5\n"
	t.Run("run", func(t *testing.T) {
		id := newID(t)
		out, code := terminal(t, d, size, script, "run", "--rm", "-t", "--runtime", harness.Runtime, harness.Image, id, "sh")
		for _, want := range []string{"33 99", "/dev/pts/0", "typed-42"} {
			if !strings.Contains(out, want) {
				t.Errorf("terminal shows no %q:\n%s", want, out)
			}
		}
		if code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
	})
	t.Run("exec", func(t *testing.T) {
		id := detached(t, d, harness.Runtime, "sleep", "1000")
		out, code := terminal(t, d, size, script, "task", "exec", "-t", "--exec-id", "tty1", id, "sh")
		for _, want := range []string{"33 99", "typed-42"} {
			if !strings.Contains(out, want) {
				t.Errorf("terminal shows no %q:\n%s", want, out)
			}
		}
		if code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
	})
}

// TestTerminalLosesNothing shows 3 MB on a terminal and holds each byte against what came through a pipe. The text is a
// file's, because an emulated processor takes longer for making it than the terminal does for showing it.
func TestTerminalLosesNothing(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sleep", "1000")
	text := must(t, d, "task", "exec", "--exec-id", "pipe", id, "sh", "-c",
		"head -c 2250000 /dev/urandom | base64 >/dev/shm/text; cat /dev/shm/text")
	if len(text) < 3000000 {
		t.Fatalf("%d bytes came through the pipe, want 3 MB", len(text))
	}
	want := strings.ReplaceAll(text, "\n", "\r\r\n") // one \r is of the container's terminal, one of ctr's
	began := time.Now()
	out, code := terminal(t, d, console.WinSize{Height: 24, Width: 80}, "", "task", "exec", "-t", "--exec-id", "cat", id,
		"cat", "/dev/shm/text")
	t.Logf("%d bytes in %v", len(out), time.Since(began).Round(time.Millisecond))
	if code != 0 || out != want {
		t.Errorf("exit %d, %d bytes that end in %q; want %d bytes", code, len(out), out[max(0, len(out)-40):], len(want))
	}
}

func TestKillWithAnySignal(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sh", "-c",
		"trap 'echo got-usr1 >> /log' USR1; trap 'exit 9' TERM; touch /log; while :; do sleep 0.1; done")
	must(t, d, "task", "exec", "--exec-id", "w", id, "sh", "-c", "until [ -e /log ]; do sleep 0.05; done")
	must(t, d, "task", "kill", "-s", "SIGUSR1", id)
	must(t, d, "task", "exec", "--exec-id", "u", id, "sh", "-c", "until grep -q got-usr1 /log; do sleep 0.05; done")
	must(t, d, "task", "kill", "-s", "SIGTERM", id)
	if code := waitStopped(t, d, id); code != 9 {
		t.Errorf("exit code after SIGTERM = %d, want 9 from the trap", code)
	}
	r := ctr(t, d, "task", "exec", "--exec-id", "late", id, "true")
	if r.Code == 0 || !strings.Contains(r.Stderr, id) {
		t.Errorf("exec in a stopped container: exit %d, %q; want an error that names it", r.Code, r.Stderr)
	}
}

// waitStopped waits for the end of a task and returns its exit status.
func waitStopped(t *testing.T, d *harness.Daemon, id string) int {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if strings.Contains(statusOf(t, d, id), "STOPPED") {
			return exitCode(t, ctr(t, d, "task", "delete", id))
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("task %s did not stop; it is %s", id, statusOf(t, d, id))
	return -1
}

var nonZero = regexp.MustCompile(`exit with non-zero exit code (\d+)`)

// exitCode reads a task's exit status out of what `ctr task delete` says.
func exitCode(t *testing.T, r harness.Result) int {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("task delete: exit %d: %s", r.Code, r.Stderr)
	}
	m := nonZero.FindStringSubmatch(r.Stderr)
	if m == nil {
		return 0
	}
	code, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func statusOf(t *testing.T, d *harness.Daemon, id string) string {
	t.Helper()
	for _, l := range strings.Split(must(t, d, "task", "ls"), "\n") {
		if f := strings.Fields(l); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return "absent"
}

func TestPauseAndResume(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sh", "-c", "while :; do echo x >> /ticks; sleep 0.05; done")
	must(t, d, "task", "pause", id)
	if got := statusOf(t, d, id); got != "PAUSED" {
		t.Errorf("status = %s, want PAUSED", got)
	}
	must(t, d, "task", "resume", id)
	if got := statusOf(t, d, id); got != "RUNNING" {
		t.Errorf("status = %s, want RUNNING", got)
	}
	must(t, d, "task", "exec", "--exec-id", "g", id, "sh", "-c",
		"n=$(wc -l < /ticks); until [ $(wc -l < /ticks) -gt $n ]; do sleep 0.05; done")
}

// cgroupMount lets a container of ctr's see its own control group, which ctr does not mount by itself.
const cgroupMount = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro"

func TestPsAndMetrics(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "--memory-limit", "67108864", "--mount", cgroupMount, "--", "sh", "-c",
		"sleep 1000 & touch /up; wait")
	must(t, d, "task", "exec", "--exec-id", "w", id, "sh", "-c", "until [ -e /up ]; do sleep 0.05; done")
	if lines := strings.Count(must(t, d, "task", "ps", id), "\n"); lines != 3 { // a heading, sh and sleep
		t.Errorf("task ps shows not two processes:\n%s", must(t, d, "task", "ps", id))
	}
	out := must(t, d, "task", "metrics", id)
	for _, want := range []string{"memory", "cpu"} {
		if !strings.Contains(out, want) {
			t.Errorf("task metrics says nothing of %s:\n%s", want, out)
		}
	}
	limit := must(t, d, "task", "exec", "--exec-id", "m", id, "sh", "-c", "cat /sys/fs/cgroup/memory.max")
	if strings.TrimSpace(limit) != "67108864" {
		t.Errorf("memory.max in the container = %q", limit)
	}
}

func TestCPULimitShapesTheCgroup(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	out := must(t, d, "run", "--rm", "--runtime", harness.Runtime, "--cpus", "0.5", "--mount", cgroupMount, harness.Image,
		newID(t), "cat", "/sys/fs/cgroup/cpu.max")
	f := strings.Fields(out)
	if len(f) != 2 {
		t.Fatalf("cpu.max = %q", out)
	}
	quota, _ := strconv.Atoi(f[0])
	period, _ := strconv.Atoi(f[1])
	if period == 0 || quota*2 != period {
		t.Errorf("cpu.max = %q, want half of the period", out)
	}
}

func TestAttach(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := newID(t)
	ctx, cancel := context.WithTimeout(t.Context(), perCommand)
	defer cancel()
	must(t, d, "container", "create", "--runtime", harness.Runtime, harness.Image, id, "sh", "-c",
		"read x; echo got-$x; exit 4")
	t.Cleanup(func() { remove(t, d, id) })
	start := d.Command(ctx, "task", "start", "-d", id)
	start.Stdin = nil
	if out, err := start.CombinedOutput(); err != nil {
		t.Fatalf("task start -d: %v: %s", err, out)
	}
	r := d.CtrInput(ctx, []byte("attached\n"), "task", "attach", id)
	if !strings.Contains(r.Stdout, "got-attached") || r.Code != 4 {
		t.Errorf("attach: exit %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
	}
}

func TestDeleteForce(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sh", "-c", "trap '' TERM; sleep 1000")
	if r := ctr(t, d, "task", "delete", "--force", id); r.Code != 0 && r.Code != 137 {
		t.Errorf("task delete --force: exit %d: %s", r.Code, r.Stderr)
	}
	if got := statusOf(t, d, id); got != "absent" {
		t.Errorf("status after delete = %s", got)
	}
}

func TestLogURIs(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	log := filepath.Join(t.TempDir(), "out.log")
	id := newID(t)
	must(t, d, "run", "-d", "--runtime", harness.Runtime, "--log-uri", "file://"+log, harness.Image, id, "sh", "-c",
		"echo to-log; echo err-log >&2; i=0; while [ $i -lt 200 ]; do echo o; echo e >&2; i=$((i+1)); done")
	t.Cleanup(func() { remove(t, d, id) })
	waitStopped(t, d, id)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if want := "to-log\nerr-log\n" + strings.Repeat("o\ne\n", 200); string(b) != want {
		t.Errorf("log file holds %q, want both outputs in the order in which they were written", b)
	}
}
