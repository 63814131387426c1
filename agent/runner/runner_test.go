// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/agent/stdio"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

var reaper *reap.Reaper

// TestMain is the test, or, under the runtime's name, a runtime that behaves like crun towards its
// caller: it leaves an init process that waits for a byte in exec.fifo, but makes no container.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "crun" {
		if err := fakeRuntime(os.Args[1:]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	reaper = reap.New()
	code := m.Run()
	reaper.Close()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func value(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 {
		return args[i+1]
	}
	return ""
}

// checkSealed looks at its own binary as crun does; one that is not sealed would copy itself and execute the copy.
func checkSealed() error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	got, err := unix.FcntlInt(self.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("seals of the runtime: %w", err)
	}
	if got != 0xf {
		return fmt.Errorf("seals of the runtime: %#x", got)
	}
	return nil
}

func fakeRuntime(args []string) error {
	fail := func(msg string) error {
		_ = os.WriteFile(value(args, "--log"), []byte(`{"msg":"just so you know","level":"warning","time":"x"}
{"msg":"`+msg+`","level":"error","time":"x"}
`), 0o600)
		return errors.New(msg)
	}
	if err := checkSealed(); err != nil {
		return fail(err.Error())
	}
	id := args[len(args)-1]
	state := filepath.Join(value(args, "--root"), id)
	var p specs.Process
	var script string
	switch {
	case slices.Contains(args, "create"):
		b, err := os.ReadFile(filepath.Join(value(args, "--bundle"), "config.json"))
		if err != nil {
			return fail(err.Error())
		}
		var s specs.Spec
		if err := json.Unmarshal(b, &s); err != nil {
			return fail(err.Error())
		}
		p = *s.Process
		if err := os.MkdirAll(filepath.Join(state, "rootfs"), 0o700); err != nil {
			return fail(err.Error())
		}
		fifo := filepath.Join(state, "exec.fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			return fail(err.Error())
		}
		script = "head -c 1 < " + fifo + " >/dev/null; " + strings.Join(p.Args, " ")
	case slices.Contains(args, "exec"):
		b, err := os.ReadFile(value(args, "--process"))
		if err != nil || json.Unmarshal(b, &p) != nil {
			return fail("no process")
		}
		script = strings.Join(p.Args, " ")
	}
	if strings.Contains(script, "nonesuch") {
		return fail("executable file `nonesuch` not found: No such file or directory")
	}
	if strings.Contains(script, "hang") {
		time.Sleep(time.Hour) // not select {}: without cgo the runtime would call that a deadlock
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if p.Terminal {
		slave, err := sendTerminal(value(args, "--console-socket"))
		if err != nil {
			return fail(err.Error())
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	}
	if err := cmd.Start(); err != nil {
		return fail(err.Error())
	}
	return os.WriteFile(value(args, "--pid-file"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

func sendTerminal(sock string) (*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return nil, err
	}
	_, _, err = c.WriteMsgUnix([]byte("/dev/pts"), unix.UnixRights(int(master.Fd())), nil)
	return slave, err
}

func newRuntime(t *testing.T) (*Runtime, string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "crun")
	if err := os.Symlink(self, bin); err != nil {
		t.Fatal(err)
	}
	return New(Config{
		Binary: bin, StateDir: dir + "/state", WorkDir: dir + "/work", CgroupRoot: dir + "/cgroup",
		Reaper: reaper,
	}), dir
}

func container(t *testing.T, dir, id string, terminal bool, args ...string) (Container, *stdio.IO) {
	t.Helper()
	io, err := stdio.New(stdio.Wiring{Terminal: terminal})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(io.Close)
	bundle := filepath.Join(dir, "bundle-"+id)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	return Container{ID: id, Bundle: bundle, Streams: io, Spec: &specs.Spec{
		Process: &specs.Process{Args: args, Terminal: terminal}, Root: &specs.Root{},
		Linux: &specs.Linux{CgroupsPath: contract.CgroupBase + id},
	}}, io
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func readAll(t *testing.T, s *stdio.IO) string {
	t.Helper()
	var all []byte
	for {
		b, err := s.Read(within(t, 20*time.Second), stdio.Stdout, 4096)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			return string(all)
		}
		all = append(all, b...)
	}
}

func TestContainer(t *testing.T) {
	r, dir := newRuntime(t)
	ctx := within(t, 30*time.Second)
	c, io := container(t, dir, "c1", false, "echo", "hello;", "exit", "7")
	p, err := r.Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(ctx, c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Create twice = %v", err)
	}
	select {
	case <-p.Done():
		t.Fatal("it ran before Start")
	default:
	}
	// The FIFO has a reader once the process that the runtime left has come that far.
	for r.Start(ctx, "c1") != nil {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	if err := r.Start(ctx, "c1"); err == nil {
		t.Error("Start twice = nil")
	}
	if out := readAll(t, io); out != "hello\n" {
		t.Errorf("output %q", out)
	}
	<-p.Done()
	if p.ExitCode() != 7 {
		t.Errorf("exit code %d", p.ExitCode())
	}
	if err := r.Delete(ctx, "c1"); err != nil {
		t.Error(err)
	}
	if err := r.Delete(ctx, "c1"); !errdefs.IsNotFound(err) {
		t.Errorf("Delete twice = %v", err)
	}
	for _, d := range []string{"state", "work"} {
		if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
			t.Errorf("%s: left behind: %v", d, left)
		}
	}
}

func TestExec(t *testing.T) {
	r, dir := newRuntime(t)
	ctx := within(t, 30*time.Second)
	if _, err := r.Exec(ctx, Exec{ContainerID: "c1"}); !errdefs.IsNotFound(err) {
		t.Errorf("Exec in an unknown container = %v", err)
	}
	c, _ := container(t, dir, "c1", false, "sleep", "1000")
	init, err := r.Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, tty := range []bool{false, true} {
		x, io := container(t, dir, "x", tty, "echo", "out;", "exit", "3")
		p, err := r.Exec(ctx, Exec{ContainerID: "c1", Process: x.Spec.Process, Streams: io})
		if err != nil {
			t.Fatal(err)
		}
		if out := strings.TrimSpace(readAll(t, io)); out != "out" {
			t.Errorf("terminal %v: output %q", tty, out)
		}
		<-p.Done()
		if p.ExitCode() != 3 {
			t.Errorf("terminal %v: exit code %d", tty, p.ExitCode())
		}
	}
	if err := init.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	<-init.Done()
	if err := r.Delete(ctx, "c1"); err != nil {
		t.Error(err)
	}
}

func TestFailuresAreNamedAndLeaveNothing(t *testing.T) {
	r, dir := newRuntime(t)
	for _, tty := range []bool{false, true} {
		c, _ := container(t, dir, "c1", tty, "nonesuch")
		_, err := r.Create(within(t, 20*time.Second), c)
		if err == nil || !strings.Contains(err.Error(), `exec: "nonesuch": executable file not found in $PATH`) ||
			strings.Contains(err.Error(), "just so") {
			t.Errorf("terminal %v: Create = %v, want the runtime's last error", tty, err)
		}
		c, _ = container(t, dir, "c1", tty, "hang")
		if _, err := r.Create(within(t, 200*time.Millisecond), c); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("terminal %v: Create of what hangs = %v", tty, err)
		}
		for _, d := range []string{"state", "work"} {
			if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
				t.Errorf("%s: left behind: %v", d, left)
			}
		}
	}
	r.cfg.Binary = dir + "/gone/crun"
	r = New(r.cfg) // the other one has the binary in memory
	c, _ := container(t, dir, "c1", false, "x")
	if _, err := r.Create(within(t, 20*time.Second), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create without a runtime = %v", err)
	}
}

func TestSeccompIsNotDropped(t *testing.T) {
	r, dir := newRuntime(t)
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("\x7fELF without it"), 0o600); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(dir, "linked")
	if err := os.WriteFile(linked, []byte("\x7fELF libseccomp.so.2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkSeccomp(linked); err != nil {
		t.Error(err)
	}
	r.seccomp = func() error { return checkSeccomp(plain) }
	c, _ := container(t, dir, "c1", false, "true")
	c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{}
	if _, err := r.Create(within(t, 20*time.Second), c); !errdefs.IsNotImplemented(err) {
		t.Errorf("Create = %v, want a refusal", err)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"msg":"x","level":"error"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if logged(name) == "" {
			t.Error("no words")
		}
	})
}
