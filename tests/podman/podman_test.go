// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package podman runs containers in microVMs with `podman --runtime coco-oci`, and the same commands under runc: output
// and exit codes have to be the same.
package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// perCommand bounds one podman command; a VM boot under TCG takes seconds.
const perCommand = 90 * time.Second

const image = "busybox:coco"

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// engine is Podman with a storage and a runtime of its own.
type engine struct {
	t       *testing.T
	dir     string
	runtime string
	root    string // of coco-oci; "" for runc
}

// start makes an engine for a runtime, "coco-oci" or "runc".
func start(t *testing.T, runtime string) *engine {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap, testvm.QEMU, testvm.Podman, testvm.Runc, testvm.GuestImage)
	dir, err := os.MkdirTemp("/var/tmp", "coco-podman-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e := &engine{t: t, dir: dir, runtime: runtime}
	conf := "[engine]\nevents_logger=\"file\"\ncgroup_manager=\"cgroupfs\"\n" +
		"[containers]\ndefault_ulimits=[\"nofile=4096:4096\",\"nproc=4096:4096\"]\n"
	if runtime == "coco-oci" {
		config, err := harness.WriteConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		// Podman 4.3 forgets flags of the runtime when it cleans up behind a container, so they are in a script.
		e.root, e.runtime = filepath.Join(dir, "o"), filepath.Join(dir, runtime)
		script := fmt.Sprintf("#!/bin/sh\nexport %s=%s\nexec %s/bin/%s --root %s \"$@\"\n", configs.EnvFile, config,
			harness.Prefix(), runtime, e.root)
		if err := os.WriteFile(e.runtime, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "containers.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "busybox.tar")
	im, err := testimage.Busybox("")
	if err == nil {
		err = im.WriteFile(archive, "docker.io/library/"+image)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.podman("", "rm", "-f", "-a", "-t", "0")
		e.podman("", "pod", "rm", "-f", "-a")
		e.podman("", "network", "prune", "-f")
		_ = unix.Unmount(filepath.Join(dir, "s", "overlay"), unix.MNT_DETACH) // Podman keeps it mounted
	})
	e.must("load", "-i", archive)
	return e
}

// command is a podman command.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{
		"--root", e.dir + "/s", "--runroot", e.dir + "/r", "--tmpdir", e.dir + "/t", "--storage-driver", "overlay",
		"--network-config-dir", e.dir + "/n", "--runtime", e.runtime,
	}
	cmd := exec.CommandContext(ctx, "podman", append(all, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+e.dir+"/containers.conf")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// result is how a command ended.
type result struct {
	out, errs string
	code      int
}

// podman runs a command.
func (e *engine) podman(stdin string, args ...string) result {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), perCommand)
	defer cancel()
	cmd := e.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		e.t.Errorf("podman %s: %v, %v: %s", strings.Join(args, " "), err, ctx.Err(), errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must is podman for a command that has to succeed.
func (e *engine) must(args ...string) string {
	e.t.Helper()
	r := e.podman("", args...)
	if r.code != 0 {
		e.t.Fatalf("podman %s: exit %d: %s%s", strings.Join(args, " "), r.code, r.out, r.errs)
	}
	return strings.TrimSpace(r.out)
}

// pid is that of a container's process on the host, as the engine has it.
func (e *engine) pid(name string) int {
	e.t.Helper()
	pid, err := strconv.Atoi(e.must("inspect", "-f", "{{.State.Pid}}", name))
	if err != nil || pid <= 0 {
		e.t.Fatalf("pid of %s: %d, %v", name, pid, err)
	}
	return pid
}

// step is a command and what is compared of it between the runtimes.
type step struct {
	stdin string
	args  []string
	noOut bool // the output names the container, or differs by itself
}

func cmd(args ...string) step { return step{args: args} }

func run(args ...string) []string {
	return append([]string{"run", "--rm", "--network", "none", image}, args...)
}

// steps are what a user of Podman does, in order. Each step's output and exit code are compared.
func steps() []step {
	service := "trap 'echo bye; exit 3' TERM; trap 'echo usr' USR1; echo up; while :; do sleep 0.1; done"
	return []step{
		cmd(run("echo", "hi")...),
		cmd(run("sh", "-c", "echo oops >&2; exit 7")...),
		{stdin: strings.Repeat("0123456789abcdef", 100_000), args: []string{
			"run", "--rm", "-i", "--network", "none", image, "md5sum",
		}},
		cmd("run", "--rm", "-t", "--network", "none", image, "sh", "-c", "tty; exit 5"),
		cmd(run("no-such-command")...),
		cmd(run("/etc")...),
		{args: []string{
			"run", "-d", "--name", "a", "--network", "none", "--health-cmd", "test -e /healthy",
			"--health-interval", "disable", "-v", "data:/data", image, "sh", "-c", service,
		}, noOut: true},
		cmd("exec", "a", "sh", "-c", "echo in $HOSTNAME | wc -w; exit 9"),
		{stdin: "word\n", args: []string{"exec", "-i", "a", "cat"}},
		cmd("exec", "-t", "a", "sh", "-c", "tty; exit 4"),
		cmd("exec", "a", "no-such-command"),
		cmd("exec", "-w", "/tmp", "-e", "A=b", "-u", "65534", "a", "sh", "-c", "pwd; echo $A; id -u"),
		cmd("exec", "a", "sh", "-c", "echo kept >/data/file"),
		cmd("healthcheck", "run", "a"),
		cmd("exec", "a", "touch", "/healthy"),
		cmd("healthcheck", "run", "a"),
		cmd("pause", "a"),
		cmd("ps", "-a", "--format", "{{.State}} {{.Names}}"),
		cmd("unpause", "a"),
		cmd("kill", "-s", "USR1", "a"),
		cmd("stop", "-t", "60", "a"),
		cmd("logs", "a"),
		cmd("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "a"),
		cmd("start", "a"),
		cmd("exec", "a", "cat", "/data/file"),
		cmd("kill", "a"),
		cmd("wait", "a"),
		cmd("rm", "-f", "a"),
		cmd("run", "--rm", "--network", "none", "-v", "data:/data", image, "cat", "/data/file"),
		cmd("volume", "rm", "data"),
		cmd("ps", "-a", "-q"),
	}
}

// TestPodmanRunsContainersInMicroVMs does the same under runc and under coco-oci.
func TestPodmanRunsContainersInMicroVMs(t *testing.T) {
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		base, e := start(t, "runc"), start(t, "coco-oci")
		for _, s := range steps() {
			want, got := base.podman(s.stdin, s.args...), e.podman(s.stdin, s.args...)
			if s.noOut {
				got.out, want.out = "", ""
			}
			if got.out != want.out || got.code != want.code {
				t.Errorf("podman %s: exit %d, %q, want %d, %q\n%s", strings.Join(s.args, " "), got.code, got.out, want.code,
					want.out, got.errs)
			}
		}
		kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			t.Fatal(err)
		}
		if got := e.must(run("uname", "-r")...); got == strings.TrimSpace(string(kernel)) {
			t.Errorf("the kernel in the container is the host's: %s", got)
		}
		checkActions(t, base, e, frontends.QuickWork(frontends.Podman))
	})
	checkNothingLeft(t, before)
}

// TestKilledProcesses ends each process that a container has on the host by SIGKILL. Afterwards the engine can remove
// the container, and nothing is left.
func TestKilledProcesses(t *testing.T) {
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		e := start(t, "coco-oci")
		for _, victim := range []string{"stand-in", "shim", "VMM"} {
			checkKill(t, e, victim)
		}
	})
	checkNothingLeft(t, before)
}

func checkNothingLeft(t *testing.T, before harness.Traces) {
	t.Helper()
	left, err := harness.Leaks(t.Context(), before, 20*time.Second, func(l string) bool {
		podmans := []string{"libpod_parent", "conmon"} // which it keeps
		return strings.HasPrefix(l, "cgroup ") && slices.Contains(podmans, filepath.Base(l))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		t.Errorf("left behind: %s", l)
	}
}

func checkKill(t *testing.T, e *engine, victim string) {
	t.Helper()
	id := e.must("run", "-d", "--name", "k", "--network", "none", image, "sleep", "1000")
	shim, vmm, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	standIn := e.pid("k")
	if rss := number(t, standIn, "VmRSS:"); rss > 8<<10 {
		t.Errorf("a stand-in holds %d KiB of memory, more than 8 MiB", rss)
	}
	pid := map[string]int{"stand-in": standIn, "shim": shim, "VMM": vmm}[victim]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill the %s: %v", victim, err)
	}
	if got := e.podman("", "wait", "k"); strings.TrimSpace(got.out) != "137" {
		t.Errorf("kill -9 of the %s: podman wait: %q, %s, want 137", victim, got.out, got.errs)
	}
	if got := e.podman("", "rm", "-f", "-t", "0", "k"); got.code != 0 {
		t.Errorf("kill -9 of the %s: podman rm -f: %d, %s", victim, got.code, got.errs)
	}
	left, err := filepath.Glob(filepath.Join(e.root, "[cs]", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("kill -9 of the %s: left behind: %q, %v", victim, left, err)
	}
}

// number reads a field of /proc/PID/status.
func number(t *testing.T, pid int, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}
