// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// invocation is one call of the runtime.
type invocation struct {
	verb    string
	args    []string
	process *specs.Process // for exec
	id      string
	streams Streams // nil for verbs that leave no process
}

// call runs the runtime and returns the process that it left, if the verb leaves one.
func (r *Runtime) call(ctx context.Context, inv invocation) (_ Process, err error) {
	dir := filepath.Join(r.cfg.WorkDir, strconv.FormatUint(r.calls.Add(1), 36))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	argv := []string{
		r.cfg.Binary, "--root", r.cfg.StateDir,
		"--log", filepath.Join(dir, "log"), "--log-format", "json",
	}
	if r.direct {
		argv = append(argv, "--cgroup-manager", "cgroupfs")
	}
	argv = append(append(argv, inv.verb), inv.args...)
	if inv.process != nil {
		name := filepath.Join(dir, "process.json")
		if err := writeJSON(name, inv.process); err != nil {
			return nil, err
		}
		argv = append(argv, "--process", name)
	}
	if inv.streams == nil {
		return nil, r.run(ctx, dir, append(argv, inv.id), nil)
	}
	pidFile := filepath.Join(dir, "pid")
	argv = append(argv, "--pid-file", pidFile)

	release := r.cfg.Reaper.Hold()
	defer release()
	if files := inv.streams.Files(); files != nil {
		err = r.run(ctx, dir, append(argv, inv.id), files)
	} else {
		err = r.runTerminal(ctx, dir, argv, inv)
	}
	if err != nil {
		return nil, err
	}
	p, err := r.left(pidFile)
	if err != nil {
		return nil, err
	}
	inv.streams.Start()
	return p, nil
}

func (r *Runtime) left(pidFile string) (Process, error) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("runtime left no pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return nil, fmt.Errorf("runtime left pid %q", b)
	}
	return r.cfg.Reaper.Watch(pid)
}

// runTerminal runs the runtime with a socket on which it hands over the terminal's master side.
func (r *Runtime) runTerminal(ctx context.Context, dir string, argv []string, inv invocation) error {
	sock := filepath.Join(dir, "tty")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the terminal: %w", err)
	}
	type result struct {
		master *os.File
		err    error
	}
	got := make(chan result, 1)
	go func() {
		f, err := receiveTerminal(l)
		got <- result{f, err}
	}()
	err = r.run(ctx, dir, append(argv, "--console-socket", sock, inv.id), nil)
	if err != nil {
		_ = l.Close()
	} else { // the runtime connected before it ended, if it did at all
		_ = l.SetDeadline(time.Now().Add(terminalDeadline))
	}
	res := <-got
	_ = l.Close()
	switch {
	case err != nil:
		if res.master != nil {
			_ = res.master.Close()
		}
		return err
	case res.err != nil:
		return fmt.Errorf("receive terminal from the runtime: %w", res.err)
	}
	return inv.streams.Attach(res.master)
}

// terminalDeadline is how long the hand-over may take after the runtime has ended.
const terminalDeadline = 5 * time.Second

func receiveTerminal(l *net.UnixListener) (*os.File, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.Join(errors.New("no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("want one descriptor"), err)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "tty"), nil
}

// run runs the runtime to its end. With files it passes them as standard streams.
func (r *Runtime) run(ctx context.Context, dir string, argv []string, files []*os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	fds := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	for i, f := range files {
		fds[i] = f.Fd()
	}
	binary, err := r.binary()
	if err != nil {
		return fmt.Errorf("OCI runtime: %w", err)
	}
	child, err := r.cfg.Reaper.Spawn(binary, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: fds,
	})
	if err != nil {
		return fmt.Errorf("OCI runtime: %w", err)
	}
	if err := child.Wait(ctx); err != nil {
		_ = child.Signal(unix.SIGKILL) // it may have ended meanwhile
		<-child.Done()
		return fmt.Errorf("OCI runtime was stopped: %w", err)
	}
	if code := child.ExitCode(); code != 0 {
		return fault(code, logged(filepath.Join(dir, "log")))
	}
	return nil
}

const maxLog = 64 << 10

// logged returns the last error of the runtime's JSON log.
func logged(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return "no reason was logged"
	}
	defer f.Close()
	last := "no reason was logged"
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, maxLog)
	for sc.Scan() {
		var line struct{ Level, Msg string }
		if json.Unmarshal(sc.Bytes(), &line) == nil && line.Msg != "" && line.Level != "warning" && line.Level != "debug" {
			last = line.Msg
		}
	}
	return last
}

// checkSeccomp makes sure that a filter would be applied: a runtime built without seccomp could
// ignore it. A runtime that uses it is linked with the library or contains it.
func checkSeccomp(binary string) error {
	b, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("OCI runtime: %w", err)
	}
	if !bytes.Contains(b, []byte("libseccomp.so")) && !bytes.Contains(b, []byte("seccomp_rule_add")) {
		return fmt.Errorf("OCI runtime %s is built without seccomp, which the container asks for: %w", binary,
			errdefs.ErrNotImplemented)
	}
	return nil
}
