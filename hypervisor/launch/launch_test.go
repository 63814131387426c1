// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

// TestMain is the launched program too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Arg:
			fmt.Fprintln(os.Stderr, Main())
			os.Exit(125)
		case "parent": // starts a launcher, says its pid and waits to be killed
			p, err := Start(context.Background(), Options{})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(p.PID())
			time.Sleep(time.Hour) // not select {}: without cgo the runtime would call that a deadlock
		case probeArg:
			probe(os.Args[2], os.Args[3])
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, opts Options) *Process {
	t.Helper()
	p, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Errorf("Kill() = %v", err)
		}
		<-p.Done()
	})
	return p
}

func TestExecKeepsThePidAndHandsOverFilesInOrder(t *testing.T) {
	p := start(t, Options{})
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := os.Open("launch.go")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	script := `echo pid $$ word "$WORD" >&3; head -c 12 <&4 >&3; echo >&3; echo fds $(ls /proc/self/fd) >&3; echo complaint >&2; exit 7`
	if err := p.Exec(t.Context(), []string{"/bin/sh", "-c", script}, []string{"WORD=x y", "PATH=/usr/bin:/bin"},
		[]*os.File{out, in}); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if got := p.ExitStatus(); got != "exit status 7" {
		t.Errorf("ExitStatus() = %q, want %q", got, "exit status 7")
	}
	if got := p.Stderr(); got != "complaint\n" {
		t.Errorf("Stderr() = %q, want %q", got, "complaint\n")
	}
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	// 5 is ls's own descriptor of the directory.
	want := fmt.Sprintf("pid %d word x y\n// Copyright\nfds 0 1 2 3 4 5\n", p.PID())
	if string(got) != want {
		t.Errorf("output = %q, want %q", got, want)
	}
}

func TestExecOfAMissingProgramSaysSo(t *testing.T) {
	p := start(t, Options{})
	err := p.Exec(t.Context(), []string{"/nonexistent/qemu"}, nil, nil)
	want := fmt.Sprintf("exec /nonexistent/qemu in launcher %d: become /nonexistent/qemu: no such file or directory",
		p.PID())
	if err == nil || err.Error() != want {
		t.Errorf("Exec() = %v, want %s", err, want)
	}
	<-p.Done()
	if got := p.ExitStatus(); got != "exit status 125" {
		t.Errorf("ExitStatus() = %q, want exit status 125", got)
	}
}

func TestManyFilesArriveAndTooManyAreRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := make([]*os.File, MaxFiles)
	for i := range files {
		files[i] = f
	}
	p := start(t, Options{})
	if err := p.Exec(t.Context(), []string{"/bin/sh", "-c", "[ -e /proc/self/fd/252 ] && exit 3"}, nil,
		files); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if got := p.ExitStatus(); got != "exit status 3" {
		t.Errorf("ExitStatus() = %q, want 3: all descriptors present; stderr %s", got, p.Stderr())
	}
	if err := start(t, Options{}).Exec(t.Context(), []string{"/bin/true"}, nil, append(files, f)); err == nil {
		t.Error("Exec() with too many files = nil, want an error")
	}
}

func TestExecAfterDeathOrTwiceFails(t *testing.T) {
	p := start(t, Options{})
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Exec(t.Context(), []string{"/bin/true"}, nil, nil); err == nil ||
		!strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Exec() after Kill = %v, want the exit status", err)
	}
	if err := p.Exec(t.Context(), []string{"/bin/true"}, nil, nil); err == nil ||
		!strings.Contains(err.Error(), "called before") {
		t.Errorf("second Exec() = %v, want a refusal", err)
	}
}

func TestTheLauncherDiesWithItsParent(t *testing.T) {
	parent := exec.Command("/proc/self/exe", "parent")
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := parent.Wait(); err == nil {
		t.Error("parent ended without a signal")
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 5000); n != 1 || err != nil {
		t.Errorf("launcher %d still lives 5s after its parent (%v)", pid, err)
	}
}

func TestTheProcessLivesInTheNamespaceAndInItsOwnSession(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns)
	holder := exec.Command("/bin/cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close() // cat then ends
		if err := holder.Wait(); err != nil {
			t.Error(err)
		}
	}()
	path := fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
	p := start(t, Options{NetNS: path})
	if got, want := link(t, fmt.Sprintf("/proc/%d/ns/net", p.PID())), link(t, path); got != want {
		t.Errorf("namespace = %s, want %s", got, want)
	}
	if sid, err := unix.Getsid(p.PID()); err != nil || sid != p.PID() {
		t.Errorf("session = %d, %v, want its own, %d", sid, err, p.PID())
	}
	if _, err := Start(t.Context(), Options{NetNS: "/proc/1/status"}); err == nil {
		t.Error("Start() in something that is no namespace = nil, want an error")
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNothingIsLeftOpen(t *testing.T) {
	before := open(t)
	for range 5 {
		p, err := Start(t.Context(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Exec(t.Context(), []string{"/bin/true"}, nil, nil); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if _, err := Start(t.Context(), Options{NetNS: "/nonexistent"}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Start() = %v, want ErrNotExist", err)
		}
	}
	if after := open(t); after > before {
		t.Errorf("open files = %d, want %d", after, before)
	}
}

func open(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func TestStderrKeepsTheTail(t *testing.T) {
	var tl tail
	if _, err := io.WriteString(&tl, strings.Repeat("a", stderrTail)+"end"); err != nil {
		t.Fatal(err)
	}
	if s := tl.String(); len(s) != stderrTail || !strings.HasSuffix(s, "end") {
		t.Errorf("tail has %d bytes ending in %q, want the last %d", len(s), s[len(s)-3:], stderrTail)
	}
}
