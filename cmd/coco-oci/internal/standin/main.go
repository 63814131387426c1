// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
)

const (
	lostStatus = 128 + int(unix.SIGKILL) // of a process whose VM is gone
	// callTimeout bounds a call beside the wait. A guest that does not answer must not keep signals from it.
	callTimeout = 10 * time.Second
	// outputGrace bounds the wait for output behind the exit. The shim has written all of it to the FIFOs by then, or has
	// given the rest up.
	outputGrace = 2 * time.Second
)

// Main is the program of a stand-in. It returns the exit status of the process it stands for.
func Main(args []string) int {
	ready := os.NewFile(readyFD, "ready")
	s, err := begin(args)
	if err != nil {
		_, _ = fmt.Fprint(ready, err) // the parent sees an end without the word otherwise
		return 1
	}
	return s.serve(ready)
}

// standIn is a stand-in that is connected.
type standIn struct {
	Process
	shim    pod.Client
	stdin   *os.File   // a FIFO to write to, or nil
	outputs []*os.File // FIFOs to read from: stdout, stderr
	holds   []*os.File // their writing ends, closed when the process has ended: until then there is no end of output
	signals chan os.Signal
}

func begin(args []string) (_ *standIn, err error) {
	p, err := parse(args)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(readyFD)
	if err := ownProc(); err != nil {
		return nil, err
	}
	s := &standIn{Process: p, signals: make(chan os.Signal, 64)}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGTTOU, syscall.SIGTTIN, syscall.SIGTSTP)
	signal.Notify(s.signals)
	if s.shim, err = pod.Dial(p.Address); err != nil {
		return nil, err
	}
	at := p.places()
	// The shim opens the FIFOs of an exec at its start: nothing here waits for a peer.
	if s.stdin, err = os.OpenFile(at.Stdin, os.O_RDWR|unix.O_NONBLOCK, 0); errors.Is(err, os.ErrNotExist) {
		s.stdin = nil
	} else if err != nil {
		return nil, err
	}
	for _, path := range []string{at.Stdout, at.Stderr} {
		hold, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		s.holds, s.outputs = append(s.holds, hold), append(s.outputs, f)
	}
	if p.Terminal {
		if err := raw(0); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// inVM is what podman top says. Podman enters the mount namespace of a container's pid, reads /proc there, and repeats
// a line of status that has not the form of others.
const inVM = "Uid: the container's processes run in a VM, where podman top does not see them: use podman exec " +
	"CONTAINER ps, or podman top CONTAINER -ef, which runs the container's own ps\n"

// ownProc replaces /proc by one that has a single entry, which says inVM to those who read it. Unmounts of the host
// still reach the stand-in's mount namespace, so that it keeps no file system busy.
func ownProc() error {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return fmt.Errorf("read the stand-in's own entry in /proc: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mounts of the stand-in: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", "/proc", "tmpfs", flags, "size=64k,nr_inodes=8,mode=555"); err != nil {
		return fmt.Errorf("cover /proc in the stand-in: %w", err)
	}
	err = os.Mkdir("/proc/1", 0o555)
	if err == nil {
		err = os.WriteFile("/proc/1/stat", stat, 0o444)
	}
	if err == nil {
		err = os.WriteFile("/proc/1/status", []byte(inVM), 0o444)
	}
	if err == nil {
		err = unix.Mount("", "/proc", "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
	}
	if err != nil {
		return fmt.Errorf("fill the stand-in's /proc: %w", err)
	}
	return nil
}

// serve relays until the process has ended. Everything that it has started ends with this program.
func (s *standIn) serve(ready *os.File) int {
	ended := make(chan int, 1)
	go func() {
		status, err := s.shim.Wait(pod.Owning(context.Background()), s.ID, s.Exec)
		if err != nil {
			ended <- lostStatus
			return
		}
		ended <- int(status) & 0xff
	}()
	_, err := io.WriteString(ready, readyWord)
	if err := errors.Join(err, ready.Close()); err != nil {
		return 1 // the parent has ended, and it alone would have started the process
	}
	var out sync.WaitGroup
	for i, from := range s.outputs {
		out.Go(func() { relay([]*os.File{os.Stdout, os.Stderr}[i], from) })
	}
	if s.stdin != nil {
		go s.input()
	}
	s.resize()
	for {
		select {
		case sig := <-s.signals:
			s.pass(sig)
		case status := <-ended:
			for i, f := range s.outputs {
				_ = f.SetReadDeadline(time.Now().Add(outputGrace)) // a FIFO has deadlines
				_ = s.holds[i].Close()                             // nothing was written to it
			}
			out.Wait()
			s.leave()
			return status
		}
	}
}

// relay copies output until its end. A reader that is gone must not stop the process: the rest is read and dropped.
func relay(to, from *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && to != nil {
			if _, werr := to.Write(buf[:n]); werr != nil {
				to = nil
			}
		}
		if err != nil {
			return
		}
	}
}

// input copies input and tells the shim its end.
func (s *standIn) input() {
	to, from := struct{ io.Writer }{s.stdin}, struct{ io.Reader }{os.Stdin} // plain ones, so that the buffer is used
	_, _ = io.CopyBuffer(to, from, make([]byte, 16<<10))                    // whatever its end is
	_ = s.stdin.Close()                                                     // all is written
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = s.shim.Do(ctx, "CloseIO", &api.CloseIORequest{Id: s.ID, ExecId: s.Exec, Stdin: true}) // the process may have ended
}

// pass gives a signal to the process in the guest.
func (s *standIn) pass(sig os.Signal) {
	n, ok := sig.(syscall.Signal)
	switch {
	case !ok || n == unix.SIGCHLD || n == unix.SIGURG: // the last is the Go runtime's own
		return
	case n == unix.SIGWINCH && s.Terminal:
		s.resize()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = s.shim.Do(ctx, "Kill", &api.KillRequest{Id: s.ID, ExecId: s.Exec, Signal: uint32(n)}) //nolint:gosec // a signal; it may have ended
}

// resize gives the terminal's size to the one in the guest.
func (s *standIn) resize() {
	if !s.Terminal {
		return
	}
	size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = s.shim.Do(ctx, "ResizePty", &api.ResizePtyRequest{
		Id: s.ID, ExecId: s.Exec, Width: uint32(size.Col), Height: uint32(size.Row),
	}) // the process may have ended, and the next change comes with a signal
}

// leave removes the files of an exec. The verb delete removes those of a container.
func (s *standIn) leave() {
	if s.Exec == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = s.shim.Do(ctx, "Delete", &api.DeleteRequest{Id: s.ID, ExecId: s.Exec}) // it goes with the container at the latest
	_ = s.Remove()                                                             // likewise
}
