// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package launch forks the process that becomes the VMM before anything is known about the VM:
// the pod's hooks and network need its pid and its namespaces first.
//
// The process is the calling program itself, run as "<exe> launch" (Main). It is born in the pod's
// network namespace, in a session of its own, with SIGKILL as its parent-death signal, and waits
// on a socket. Exec sends it a command line, an environment and open files, and it becomes that
// program. It keeps one pid from birth to death and can at no moment outlive its parent.
//
// With a Jail it is the first process of namespaces of its own, with an empty root, and the program that it
// becomes has a user of its own and no privileges (package jail).
//
// The caller makes the cgroups and moves the pid there before Exec.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/ownthread"
)

const (
	// Arg is the argument that makes the program call Main.
	Arg = "launch"
	// MaxFiles is how many files Exec can hand over.
	MaxFiles = 250

	jailed = "jailed" // after Arg: the process is to enter its jail

	firstFD    = 3
	controlFD  = firstFD + MaxFiles // where the process finds its socket
	maxMessage = 128 << 10
	stderrTail = 8 << 10
	stderrWait = time.Second // for the pipe to drain when a grandchild holds it open
)

// Options say where the process lives.
type Options struct {
	// Exe is the program to run, which calls Main when its first argument is Arg. Empty: ourselves.
	Exe string
	// NetNS is the path of a network namespace; empty: ours.
	NetNS string
	// Jail confines the process; nil, which is for tests: it has what we have.
	Jail *jail.Options
}

// Process is a launched process. It implements hypervisor.Process.
type Process struct {
	cmd     *exec.Cmd
	jail    *jail.Options // nil: none
	lender  *jail.Lender  // nil: nothing is lent
	control *net.UnixConn
	stderr  *tail
	reaped  chan struct{}
	status  string        // valid after reaped
	done    chan struct{} // closed last: nothing of the process is held any more

	execOnce sync.Once
	talk     sync.Mutex // held while control is used

	mu     sync.Mutex
	mounts *os.File  // guarded by mu; the mount namespace of one with a jail, until the end
	room   jail.Spec // guarded by mu; the content of its root
	empty  bool      // guarded by mu
}

var (
	_ hypervisor.Process = (*Process)(nil)
	_ hypervisor.Emptier = (*Process)(nil)
	_ hypervisor.Placer  = (*Process)(nil)
)

// message is what Exec sends, with files beside it: first what goes into the jail, if there is one, then
// the command line.
type message struct {
	Room  *jail.Spec `json:"room,omitempty"`
	Argv  []string   `json:"argv,omitempty"`
	Env   []string   `json:"env,omitempty"`
	Files int        `json:"files"`
}

// Start forks the process. ctx bounds the start only. The caller ends it with Kill and
// waits for Done.
func Start(ctx context.Context, opts Options) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	exe := opts.Exe
	if exe == "" {
		exe = "/proc/self/exe"
	}
	control, peer, err := fdpass.Pair("launcher", unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	p := &Process{
		cmd:     exec.Command(exe, Arg), // outlives every request; ended by Kill
		jail:    opts.Jail,
		control: control,
		stderr:  &tail{},
		reaped:  make(chan struct{}),
		done:    make(chan struct{}),
	}
	// The files of Exec will take the descriptors from 3 on. They are occupied from the start, so
	// that the Go runtime of the process, which has its own, never sits on one of them.
	null, err := os.Open(os.DevNull)
	if err == nil {
		for range MaxFiles {
			p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, null)
		}
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, peer)
		p.cmd.Stderr = p.stderr
		p.cmd.WaitDelay = stderrWait
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if p.jail != nil {
			p.lender = jail.NewLender(*p.jail)
			p.cmd.Args = append(p.cmd.Args, jailed)
			p.cmd.SysProcAttr.Cloneflags = jail.Namespaces
		}
		started := make(chan error)
		ownthread.Go(func() { p.live(opts.NetNS, started) })
		err = <-started
		_ = null.Close() // only read
		p.cmd.ExtraFiles = nil
	}
	_ = peer.Close() // the process has its duplicate
	if err != nil {
		_ = control.Close() // nothing was written
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	return p, nil
}

// live forks and reaps the process on a thread of its own. The thread enters the namespace,
// which the child inherits, and it stays until the child is gone since the parent-death signal
// is sent when the forking thread ends, not the process.
func (p *Process) live(path string, started chan<- error) {
	if err := p.fork(path); err != nil {
		started <- err
		return
	}
	started <- nil
	err := p.cmd.Wait()
	if s := p.cmd.ProcessState; s != nil {
		p.status = s.String()
	} else {
		p.status = err.Error()
	}
	close(p.reaped)
	p.talk.Lock()         // an Exec that is under way reads the process's last message
	_ = p.control.Close() // the peer is gone
	p.talk.Unlock()
	p.leave()
	p.lender.Close()
	close(p.done)
}

func (p *Process) fork(path string) error {
	if path != "" {
		ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
	}
	if err := p.cmd.Start(); err != nil || p.jail == nil {
		return err
	}
	// Now, while nothing keeps us from looking at it.
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", p.PID()))
	if err != nil {
		_ = p.cmd.Process.Kill() // it has nothing yet
		_ = p.cmd.Wait()         // killed
		return err
	}
	p.mu.Lock()
	p.mounts = mounts
	p.mu.Unlock()
	return nil
}

// leave closes the mount namespace.
func (p *Process) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mounts != nil {
		_ = p.mounts.Close() // only a reference
		p.mounts = nil
	}
}

// Empty takes everything out of the root of the program but what it was said to keep. It is for when the
// program has started: from then on it has no file but those that it has open.
func (p *Process) Empty() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mounts == nil || p.empty {
		return nil // without a jail, or dead
	}
	p.empty = true
	return jail.Empty(p.mounts, p.room)
}

// Places is where files can be shown to the program by name.
func (p *Process) Places() string {
	if p.jail == nil || !p.jail.Disks {
		return ""
	}
	return jail.Disks
}

// User is the uid and gid that the program has in its jail.
func (p *Process) User() uint32 {
	if p.jail == nil {
		return 0
	}
	return p.jail.User
}

// Place shows a file, which must have a name itself, under another name and returns the program's path of it.
func (p *Process) Place(file *os.File, name string, readOnly bool) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mounts == nil {
		return "", fmt.Errorf("show %s: process %d has ended", file.Name(), p.PID())
	}
	return jail.Place(p.mounts, p.lender, file, name, readOnly)
}

// Displace takes away what Place has shown.
func (p *Process) Displace(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mounts == nil {
		return nil // gone with it
	}
	return jail.Displace(p.mounts, name)
}

// PID is the process id, the same before and after Exec.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitStatus says how the process ended; valid after Done.
func (p *Process) ExitStatus() string {
	select {
	case <-p.done:
		return p.status
	default:
		return "running"
	}
}

// Stderr is the tail of what the process wrote to its standard error.
func (p *Process) Stderr() string { return p.stderr.String() }

// Kill ends the process with SIGKILL.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.PID(), err)
	}
	return nil
}

// Exec turns the process into argv[0]. It can be called once.
func (p *Process) Exec(ctx context.Context, argv, env []string, files []*os.File) error {
	if len(argv) == 0 {
		return errors.New("exec in launcher: empty command line")
	}
	err := errors.New("it was called before")
	p.execOnce.Do(func() {
		p.talk.Lock()
		defer p.talk.Unlock()
		err = p.exec(ctx, message{Argv: slices.Clone(argv), Env: env, Files: len(files)}, files)
	})
	if err != nil {
		return fmt.Errorf("exec %s in launcher %d: %w", argv[0], p.PID(), err)
	}
	return nil
}

func (p *Process) exec(ctx context.Context, m message, files []*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%d open files to hand over, at most %d are possible", len(files), MaxFiles)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if p.jail != nil {
		var err error
		if m.Argv[0], err = p.furnish(ctx, m.Argv[0]); err != nil {
			return err
		}
	}
	lent, err := p.lend(files)
	if err != nil {
		return err
	}
	defer lent.close()
	if err := p.send(ctx, m, lent.files); err != nil {
		return err
	}
	// The socket closes on exec: its end is the sign of success, a message that of failure. But it
	// closes on death too.
	reply := make([]byte, 4096)
	n, err := p.control.Read(reply)
	switch {
	case n > 0:
		return errors.New(string(reply[:n]))
	case err != nil && !errors.Is(err, io.EOF):
		return p.explain(ctx, err)
	}
	return nil
}

// loan are the files that the program gets: those of the caller, some of them opened again.
type loan struct{ files, again []*os.File }

func (l loan) close() {
	for _, f := range l.again {
		_ = f.Close() // the process has its duplicate
	}
}

// lend makes the files accessible by name to the program's user, where it needs that.
func (p *Process) lend(files []*os.File) (loan, error) {
	var l loan
	for _, f := range files {
		lent, err := p.lender.Lend(f)
		if err != nil {
			l.close()
			return loan{}, err
		}
		if lent != f {
			l.again = append(l.again, lent)
		}
		l.files = append(l.files, lent)
	}
	return l, nil
}

// furnish has the process put into its root what the program needs, whose path there it returns.
func (p *Process) furnish(ctx context.Context, binary string) (string, error) {
	plan, err := jail.Prepare(binary, *p.jail)
	if err != nil {
		return "", fmt.Errorf("confine it: %w", err)
	}
	defer plan.Close()
	p.mu.Lock()
	p.room = plan.Spec
	p.mu.Unlock()
	return plan.Binary, p.send(ctx, message{Room: &plan.Spec, Files: len(plan.Files)}, plan.Files)
}

func (p *Process) send(ctx context.Context, m message, files []*os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("command line and environment take %d bytes, at most %d are possible", len(data), maxMessage)
	}
	if err := fdpass.Send(p.control, data, files...); err != nil {
		return p.explain(ctx, err)
	}
	return nil
}

// explain says that the process has died, where that is why its socket broke: that it was reaped follows.
func (p *Process) explain(ctx context.Context, err error) error {
	if cerr := context.Cause(ctx); cerr != nil {
		return cerr
	}
	t := time.NewTimer(stderrWait)
	defer t.Stop()
	select {
	case <-p.reaped:
		return fmt.Errorf("it has ended: %s", strings.TrimSpace(p.status+" "+p.stderr.String()))
	case <-t.C:
		return err
	}
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - stderrTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
