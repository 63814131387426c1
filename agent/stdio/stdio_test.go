// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// listen serves a broker on a socket and returns how to connect to it.
func listen(t *testing.T, b *Broker) func() net.Conn {
	t.Helper()
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		<-served
		b.Close()
	})
	return func() net.Conn {
		c, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// open registers stream n.
func open(t *testing.T, dial func() net.Conn, greeting string) (net.Conn, bool) {
	t.Helper()
	c := dial()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, greeting); err != nil {
		return c, false
	}
	got := make([]byte, 3)
	_, err := io.ReadFull(c, got)
	_ = c.SetDeadline(time.Time{})
	return c, err == nil && string(got) == "ok\n"
}

func TestBroker(t *testing.T) {
	b := NewBroker(func() error { return nil })
	dial := listen(t, b)
	c, ok := open(t, dial, "stream 7\nearly")
	if !ok {
		t.Fatal("stream 7 was refused")
	}
	if _, ok := open(t, dial, "stream 7\n"); ok {
		t.Error("a second stream 7 was accepted")
	}
	for _, bad := range []string{
		"stream 0\n", "stream -1\n", "stream 01\n", "stream 4294967296\n", "stream x\n",
		"hello\n", "stream 1 \n", "stream 11111111111111111111111111111111111\n",
	} {
		if _, ok := open(t, dial, bad); ok {
			t.Errorf("%q was accepted", bad)
		}
	}
	conns, err := b.Claim(0, 7)
	if err != nil || conns[0] != nil || conns[1] == nil {
		t.Fatalf("Claim = %v, %v", conns, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conns[1], got); err != nil || string(got) != "early" {
		t.Errorf("what followed the greeting: %q, %v", got, err)
	}
	_ = conns[1].Close()
	if _, err := c.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v", err)
	}
	if _, err := b.Claim(7); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Claim twice = %v, want ErrInvalidArgument", err)
	}
}

func TestClaimTakesAllOrNone(t *testing.T) {
	b := NewBroker(func() error { return nil })
	dial := listen(t, b)
	c, _ := open(t, dial, "stream 1\n")
	if _, err := b.Claim(1, 2); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Claim = %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("stream of a failed request: %v, want its end", err)
	}
}

func TestUnclaimedStreamsEnd(t *testing.T) {
	b := NewBroker(func() error { return nil })
	b.claimTime = 20 * time.Millisecond
	dial := listen(t, b)
	c, ok := open(t, dial, "stream 1\n")
	if !ok {
		t.Fatal("refused")
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("unclaimed stream: %v, want its end", err)
	}
}

// Above 64 at once streams were closed, and the processes they were for failed with "the agent's connection broke".
func TestStreamsWaitForAPlaceAndAFullQueueSaysSo(t *testing.T) {
	b := NewBroker(func() error { return nil })
	dial := listen(t, b)
	for i := range maxPending {
		if _, ok := open(t, dial, fmt.Sprintf("stream %d\n", i+1)); !ok {
			t.Fatalf("stream %d was refused", i+1)
		}
	}
	goroutines := runtime.NumGoroutine()
	waiting := make([]net.Conn, maxWaiting)
	for i := range waiting {
		waiting[i] = dial()
		if _, err := fmt.Fprintf(waiting[i], "stream %d\n", 1000+i); err != nil {
			t.Fatal(err)
		}
	}
	c := dial() // the listener takes them in order
	if got, err := io.ReadAll(c); string(got) != "no\n" || err != nil {
		t.Errorf("one too many reads %q, %v", got, err)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 8 {
		t.Errorf("%d streams that wait have %d goroutines", maxWaiting, n)
	}
	for i := range maxPending { // each makes room for one
		if _, err := b.Claim(uint32(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan bool)
	for _, w := range waiting {
		go func() {
			_, err := io.ReadFull(w, make([]byte, 3))
			answered <- err == nil
		}()
	}
	for range maxPending {
		if !<-answered {
			t.Fatal("a stream that waited was not greeted")
		}
	}
	b.Close()
	for range maxWaiting - maxPending {
		if <-answered {
			t.Error("more streams were greeted than there are places")
		}
	}
}

// pair is a connection of which one side is the host's.
func pair(t *testing.T) (host, guest *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = c.(*net.UnixConn)
	}
	t.Cleanup(func() { out[0].Close() })
	return out[0], out[1]
}

// run starts a command with the streams of s.
func run(t *testing.T, s *IO, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	f := s.Files()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f[0], f[1], f[2]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.Start()
	return cmd
}

func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// A process whose outputs go to one stream writes both into one pipe.
func TestOneOutputKeepsTheOrder(t *testing.T) {
	host, guest := pair(t)
	s, err := New(Wiring{Streams: true, OneOutput: true, Stdout: guest})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cmd := run(t, s, "for i in 1 2 3 4 5 6 7 8 9; do echo o; echo e >&2; done")
	got, err := io.ReadAll(host)
	if want := strings.Repeat("o\ne\n", 9); err != nil || string(got) != want {
		t.Errorf("the host reads %q, %v, want %q", got, err, want)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	<-s.Flushed()
	hidden, guest := pair(t)
	if s, err = New(Wiring{Streams: true, OneOutput: true, Discard: true, Stdout: guest}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cmd = run(t, s, "echo o; echo e >&2")
	if got, err := io.ReadAll(hidden); err != nil || len(got) > 0 {
		t.Errorf("of a process that shows nothing the host reads %q, %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestStreamsCarry64MiBBothWays(t *testing.T) {
	hin, gin := pair(t)
	hout, gout := pair(t)
	herr, gerr := pair(t)
	s, err := New(Wiring{Streams: true, Stdin: gin, Stdout: gout, Stderr: gerr})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cmd := run(t, s, "cat; echo done >&2")
	data := pattern(64 << 20)
	go func() {
		_, _ = hin.Write(data)
		_ = hin.CloseWrite()
	}()
	got, err := io.ReadAll(hout)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back (%v), or not the same", len(got), err)
	}
	if e, _ := io.ReadAll(herr); string(e) != "done\n" {
		t.Errorf("error output %q", e)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	s.Exited()
	<-s.Flushed()
}

func TestAbsentStreamsAreNull(t *testing.T) {
	hout, gout := pair(t)
	s, err := New(Wiring{Streams: true, Stdout: gout})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cmd := run(t, s, "cat; echo lost >&2; echo out")
	got, _ := io.ReadAll(hout)
	if string(got) != "out\n" {
		t.Errorf("output %q", got)
	}
	_ = cmd.Wait()
}

func TestOutputBeforeExitIsNotLostToAGrandchild(t *testing.T) {
	hout, gout := pair(t)
	s, err := New(Wiring{Streams: true, Stdout: gout})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "(read x < "+gate+") & head -c 50000 /dev/zero; exit 0")
	_ = hout.CloseWrite() // the host will not write; that alone must not cut anything off
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s.Exited()
	got, err := io.ReadAll(hout)
	if err != nil || len(got) != 50000 {
		t.Errorf("%d bytes, %v; want all that the process wrote, and the end", len(got), err)
	}
	_ = os.WriteFile(gate, []byte("x\n"), 0)
}

func TestCloseReleasesEverything(t *testing.T) {
	_, gin := pair(t)
	_, gout := pair(t)
	s, err := New(Wiring{Streams: true, Stdin: gin, Stdout: gout})
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "exec sleep 1000")
	s.Close() // returns although nothing has ended
	s.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	s.Exited()
}

func TestCalls(t *testing.T) {
	s, err := New(Wiring{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Read(within(t), Stdout, 10); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Read before start = %v", err)
	}
	cmd := run(t, s, "cat; echo bye >&2")
	data := pattern(1 << 20)
	go func() {
		for rest := data; len(rest) > 0; {
			n, err := s.Write(within(t), rest[:min(len(rest), 32<<10)])
			if err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		s.CloseStdin()
	}()
	for out, want := range map[Output][]byte{Stdout: data, Stderr: []byte("bye\n")} {
		var got []byte
		for {
			b, err := s.Read(within(t), out, 32<<10)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) == 0 {
				break
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("output %d: %d bytes, want %d", out, len(got), len(want))
		}
	}
	_ = cmd.Wait()
	s.Exited()
	<-s.Flushed()
	if _, err := s.Write(within(t), []byte("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Write after the end = %v", err)
	}
}

func TestAReadThatIsGivenUpLosesNothing(t *testing.T) {
	s, err := New(Wiring{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cmd := run(t, s, "cat")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if b, err := s.Read(ctx, Stdout, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read = %q, %v", b, err)
	}
	if _, err := s.Write(within(t), []byte("abc")); err != nil {
		t.Error(err)
	}
	if b, err := s.Read(within(t), Stdout, 10); err != nil || string(b) != "abc" {
		t.Errorf("Read afterwards = %q, %v", b, err)
	}
	s.CloseStdin()
	_ = cmd.Wait()
}

func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(filepath.Join("/dev/pts", itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// Without the second read some of these terminals, three in the mean on two processors, lose what was written last.
func TestTheLastWordsToATerminalArrive(t *testing.T) {
	const rounds, writes = 10000, 5
	word := bytes.Repeat([]byte("x"), 100)
	for range rounds {
		master, slave := terminal(t)
		written := make(chan struct{})
		go func() {
			defer close(written)
			for range writes {
				_, _ = slave.Write(word)
			}
			_ = slave.Close()
		}()
		n, err := transfer(io.Discard, master)
		<-written
		_ = master.Close()
		if err != nil || n != writes*int64(len(word)) {
			t.Fatalf("%d bytes of %d, %v", n, writes*len(word), err)
		}
	}
}

func TestTerminal(t *testing.T) {
	master, slave := terminal(t)
	hin, gin := pair(t)
	hout, gout := pair(t)
	s, err := New(Wiring{Terminal: true, Streams: true, Stdin: gin, Stdout: gout})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Files() != nil {
		t.Error("a terminal has descriptors of its own")
	}
	if err := s.Resize(1, 1); !errdefs.IsUnavailable(err) {
		t.Errorf("Resize before there is one = %v", err)
	}
	cmd := exec.Command("/bin/sh", "-c", "stty -echo; stty size; read x; echo got $x")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := s.Attach(master); err != nil {
		t.Fatal(err)
	}
	if err := s.Resize(12, 34); err != nil {
		t.Error(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	_, _ = io.WriteString(hin, "word\n")
	_ = hin.CloseWrite() // the end of the input is no hang-up
	out, err := io.ReadAll(hout)
	if err != nil || !bytes.Contains(out, []byte("12 34\r\n")) || !bytes.Contains(out, []byte("got word\r\n")) {
		t.Errorf("output %q, %v", out, err)
	}
	_ = cmd.Wait()
	s.Exited()
	<-s.Flushed()
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}
