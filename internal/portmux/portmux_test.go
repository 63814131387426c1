// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testPort = contract.PortAgent

// pair connects a dialer and a serving mux by a socket pair.
func pair(t testing.TB) (*Dialer, *Mux) {
	t.Helper()
	host, guest := sockets(t)
	d, m := NewDialer(host), NewMux(guest)
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Dialer.Close() = %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v, want nil after the peer's Close", err)
		}
	})
	return d, m
}

func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// connect dials testPort and returns both ends.
func connect(t testing.TB, d *Dialer, m *Mux) (host, guest *Conn) {
	t.Helper()
	l, err := m.Listen(testPort)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial(t.Context(), testPort)
	if err != nil {
		t.Fatal(err)
	}
	g, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []io.Closer{c, g, l} {
			if err := c.Close(); err != nil {
				t.Errorf("Close() = %v", err)
			}
		}
	})
	return c.(*Conn), g.(*Conn)
}

func TestBytesTravelBothWaysAndEOFFollowsTheLastByte(t *testing.T) {
	d, m := pair(t)
	host, guest := connect(t, d, m)
	data := make([]byte, 8<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range []*Conn{host, guest} {
		wg.Go(func() {
			if n, err := c.Write(data); err != nil || n != len(data) {
				t.Errorf("Write() = %d, %v, want %d, nil", n, err, len(data))
			}
			if err := c.CloseWrite(); err != nil {
				t.Errorf("CloseWrite() = %v", err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(c)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("ReadAll() = %d bytes, %v, want the %d bytes written", len(got), err, len(data))
			}
		})
	}
	wg.Wait()
}

func TestCloseGivesThePeerAllDataThenEOFAndFailsItsWrites(t *testing.T) {
	for _, blocked := range []bool{false, true} {
		d, m := pair(t)
		host, guest := connect(t, d, m)
		if _, err := guest.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		write := func() { // writes until it fails
			for {
				if _, err := host.Write(make([]byte, 64<<10)); err != nil {
					result <- err
					return
				}
			}
		}
		if blocked { // nearly fill the window before the peer closes
			if _, err := host.Write(make([]byte, initialWindow-1024)); err != nil {
				t.Fatal(err)
			}
			go write()
		}
		if err := guest.Close(); err != nil {
			t.Fatal(err)
		}
		if !blocked {
			go write()
		}
		if err := <-result; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("blocked=%v: Write() after the peer's Close = %v, want EPIPE", blocked, err)
		}
		got, err := io.ReadAll(host)
		if err != nil || string(got) != "last words" {
			t.Errorf("ReadAll() = %q, %v, want %q", got, err, "last words")
		}
	}
}

func TestCloseLeavesNoStreamBehind(t *testing.T) {
	d, m := pair(t)
	l, err := m.Listen(testPort)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		c, err := d.Dial(t.Context(), testPort)
		if err != nil {
			t.Fatal(err)
		}
		g, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(g); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	last, err := d.Dial(t.Context(), testPort) // its answer comes after all ends before it
	if err != nil {
		t.Fatal(err)
	}
	if n := numStreams(d.link); n != 2 {
		t.Errorf("host streams = %d, want 2: control and the last", n)
	}
	if n := numStreams(m.link); n != 2 {
		t.Errorf("guest streams = %d, want 2", n)
	}
	if err := last.Close(); err != nil {
		t.Error(err)
	}
}

func numStreams(l *link) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

func TestDialNamesThePortThatNobodyListensOn(t *testing.T) {
	d, _ := pair(t)
	_, err := d.Dial(t.Context(), 77)
	if !errors.Is(err, ErrRefused) || err.Error() != "dial guest port 77: nobody listens on that guest port" {
		t.Errorf("Dial() = %v, want ErrRefused for port 77", err)
	}
}

func TestDialWaitsForAGuestThatComesLater(t *testing.T) {
	host, guest := sockets(t)
	d := NewDialer(host)
	dialed := make(chan error, 1)
	go func() {
		c, err := d.Dial(t.Context(), testPort)
		if err == nil {
			err = c.Close()
		}
		dialed <- err
	}()
	m := NewMux(guest)
	if _, err := m.Listen(testPort); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	if err := <-dialed; err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	<-served
}

func TestDialEndsWithItsContext(t *testing.T) {
	host, guest := sockets(t)
	d := NewDialer(host)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx, testPort); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial() = %v, want the context's error", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
}

func TestLossOfTheChannelIsNotMistakenForEOF(t *testing.T) {
	host, guest := sockets(t)
	d, m := NewDialer(host), NewMux(guest)
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	hc, _ := connect(t, d, m)
	if err := guest.Close(); err != nil { // the VM dies
		t.Fatal(err)
	}
	if _, err := hc.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("Read() = %v, want ErrLost", err)
	}
	if _, err := hc.Write([]byte("x")); !errors.Is(err, ErrLost) {
		t.Errorf("Write() = %v, want ErrLost", err)
	}
	<-d.Done()
	if _, err := d.Dial(t.Context(), testPort); !errors.Is(err, ErrLost) {
		t.Errorf("Dial() = %v, want ErrLost", err)
	}
	<-served
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestDeadlinesAndCloseWakeAReader(t *testing.T) {
	d, m := pair(t)
	host, _ := connect(t, d, m)
	if err := host.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read() = %v, want os.ErrDeadlineExceeded", err)
	}
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := host.Read(make([]byte, 1))
		read <- err
	}()
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read() = %v, want net.ErrClosed", err)
	}
}

func TestCloseLeavesNoTimerBehind(t *testing.T) {
	d, m := pair(t)
	_, guest := connect(t, d, m)
	timers := func() int {
		n := 0
		for _, d := range []*deadline{&guest.rdead, &guest.wdead} {
			d.mu.Lock()
			if d.timer != nil {
				n++
			}
			d.mu.Unlock()
		}
		return n
	}
	if err := guest.SetDeadline(time.Now().Add(time.Hour)); err != nil || timers() != 2 {
		t.Fatalf("open: %d timers, %v", timers(), err)
	}
	if err := guest.Close(); err != nil || timers() != 0 {
		t.Errorf("closed: %d timers, %v", timers(), err)
	}
	if err := guest.SetDeadline(time.Now().Add(time.Hour)); err != nil || timers() != 0 {
		t.Errorf("a deadline after the end: %d timers, %v", timers(), err)
	}
}

func TestAPeerThatBreaksTheProtocolIsCutOff(t *testing.T) {
	tests := []struct{ name, line string }{
		{"unknown word on the control stream", "free 3\n"},
		{"endless line on the control stream", string(bytes.Repeat([]byte("1"), 100))},
		{"signed number", "reset +3\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, guest := sockets(t)
			d, m := NewDialer(host), NewMux(guest)
			served := make(chan error, 1)
			go func() { served <- m.Serve() }()
			s := d.open(testPort)
			_, _ = s.Write([]byte("CONNECT 0\n" + tt.line)) // may see the channel end already
			<-served
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBadHandshakesEndTheStream(t *testing.T) {
	for _, line := range []string{
		"CONNECT\n", "CONNECT 99999999999\n", "GET / HTTP/1.1\n", "CONNECT 01024\n",
		"connect 1024\n",
	} {
		d, m := pair(t)
		if _, err := m.Listen(testPort); err != nil {
			t.Fatal(err)
		}
		s := d.open(testPort)
		if _, err := s.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || len(got) != 0 {
			t.Errorf("answer to %q = %q, %v, want the end of the stream", line, got, err)
		}
	}
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{"CONNECT 1024\n", "reset 3\nreset 5\n", "OK 0\n", "CONNECT 1024", "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		r := bytes.NewReader(in)
		for {
			before := r.Len()
			line, err := readLine(r)
			if used := before - r.Len(); used > maxLine {
				t.Fatalf("readLine read %d bytes, want at most %d", used, maxLine)
			}
			if err != nil {
				return
			}
			for _, word := range []string{"CONNECT", "OK", "reset"} {
				if n, err := parseLine(line, word); err == nil && string(formatLine(word, n)) != line+"\n" {
					t.Fatalf("parseLine(%q) = %d, which formats as %q", line, n, formatLine(word, n))
				}
			}
		}
	})
}

func BenchmarkThroughput(b *testing.B) {
	d, m := pair(b)
	host, guest := connect(b, d, m)
	go func() { _, _ = io.Copy(io.Discard, guest) }()
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := host.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
