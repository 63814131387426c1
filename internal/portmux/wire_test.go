// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

// The other end is the library that the protocol comes from, with its own windows and keep-alives.
func TestItIsYamuxOnTheWire(t *testing.T) {
	cfg := yamux.DefaultConfig()
	cfg.LogOutput, cfg.Logger = nil, log.New(io.Discard, "", 0)
	cfg.KeepAliveInterval = time.Millisecond
	data := make([]byte, 3<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	exchange := func(t *testing.T, ours, theirs io.ReadWriter, endOurs, endTheirs func() error) {
		var wg sync.WaitGroup
		for _, e := range []struct {
			rw  io.ReadWriter
			end func() error
		}{{ours, endOurs}, {theirs, endTheirs}} {
			wg.Go(func() {
				if _, err := e.rw.Write(data); err != nil {
					t.Errorf("Write() = %v", err)
				}
				if err := e.end(); err != nil {
					t.Errorf("CloseWrite() = %v", err)
				}
			})
			wg.Go(func() {
				got, err := io.ReadAll(e.rw)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
					t.Errorf("ReadAll() = %d bytes, %v, want the %d bytes written", len(got), err, len(data))
				}
			})
		}
		wg.Wait()
	}
	t.Run("our guest", func(t *testing.T) {
		host, guest := sockets(t)
		m := NewMux(guest)
		l, err := m.Listen(testPort)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- m.Serve() }()
		s, err := yamux.Client(host, cfg)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := s.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if err := handshakeOver(theirs); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ours, _ := c.(*Conn)
		exchange(t, ours, theirs, ours.CloseWrite, theirs.Close)
		if err := errors.Join(ours.Close(), s.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	t.Run("our host", func(t *testing.T) {
		host, guest := sockets(t)
		s, err := yamux.Server(guest, cfg)
		if err != nil {
			t.Fatal(err)
		}
		d := NewDialer(host)
		control, err := s.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		if line, err := readLine(control); err != nil || line != "CONNECT 0" {
			t.Fatalf("first stream says %q, %v", line, err)
		}
		if _, err := control.Write([]byte("OK 0\n")); err != nil {
			t.Fatal(err)
		}
		ours := d.open(testPort)
		theirs, err := s.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, ours, theirs, ours.CloseWrite, theirs.Close)
		if err := errors.Join(ours.Close(), d.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
}

func handshakeOver(rw io.ReadWriter) error {
	if _, err := fmt.Fprintf(rw, "CONNECT %d\n", testPort); err != nil {
		return err
	}
	line, err := readLine(rw)
	if err == nil && line != fmt.Sprintf("OK %d", testPort) {
		err = fmt.Errorf("answer %q", line)
	}
	return err
}

// splicing is a socket that takes pages, as a virtio-serial port does.
type splicing struct {
	net.Conn
	moved int
	fail  bool
}

func (s *splicing) Splice(pipe, n int) error {
	if s.fail {
		return io.ErrShortWrite
	}
	raw, err := s.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	for n > 0 {
		var k int64
		cerr := raw.Write(func(fd uintptr) bool {
			k, err = unix.Splice(pipe, nil, int(fd), nil, n, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		if err := errors.Join(cerr, err); err != nil {
			return err
		}
		n -= int(k)
		s.moved += int(k)
	}
	return nil
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	growPipe(p[0], 1<<20)
	r, w = os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// splicingPair is pair, with a guest's channel that splices.
func splicingPair(t *testing.T) (*Dialer, *Mux, *splicing) {
	host, guest := sockets(t)
	ch := &splicing{Conn: guest}
	d, m := NewDialer(host), NewMux(ch)
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Dialer.Close() = %v", err)
		}
		<-served
	})
	return d, m, ch
}

func TestSplicedBytesArriveInOrderWithEOF(t *testing.T) {
	d, m, ch := splicingPair(t)
	host, guest := connect(t, d, m)
	r, w := pipe(t)
	data := make([]byte, 24<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	go func() { // in pieces around the size from which pages are moved
		defer w.Close()
		for rest, size := data, 1; len(rest) > 0; size = size*3 + 1 {
			if size > 1<<20 {
				size = 1
			}
			n, err := w.Write(rest[:min(size, len(rest))])
			if err != nil {
				t.Errorf("write to the pipe: %v", err)
				return
			}
			rest = rest[n:]
		}
	}()
	go func() {
		n, err := guest.SpliceFrom(r)
		if n != int64(len(data)) || err != nil {
			t.Errorf("SpliceFrom() = %d, %v, want %d, nil", n, err, len(data))
		}
		if err := guest.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(host)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("ReadAll() = %d bytes, %v, want the %d bytes written", len(got), err, len(data))
	}
	if ch.moved == 0 {
		t.Error("nothing was spliced")
	}
}

func TestAStalledSpliceStopsNobodyElse(t *testing.T) {
	d, m, _ := splicingPair(t)
	_, guest := connect(t, d, m) // whose host does not read
	r, w := pipe(t)
	ended := make(chan error, 1)
	go func() {
		_, err := guest.SpliceFrom(r)
		ended <- err
	}()
	filled := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 8<<20)) // more than window and pipes hold
		filled <- err
	}()
	l, err := m.Listen(testPort + 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		c, err := d.Dial(t.Context(), testPort+1)
		if err != nil {
			t.Fatal(err)
		}
		g, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Write([]byte("past it")); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != "past it" || err != nil {
			t.Fatalf("ReadAll() = %q, %v", got, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := guest.Close(); err != nil { // wakes the writer that waits for its window
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("SpliceFrom() = %v, want net.ErrClosed", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-filled; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to the pipe = %v, want EPIPE", err)
	}
}

func TestSpliceEndsWithTheReadDeadlineOfThePipe(t *testing.T) {
	d, m, _ := splicingPair(t)
	_, guest := connect(t, d, m)
	r, _ := pipe(t)
	if err := r.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.SpliceFrom(r); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("SpliceFrom() = %v, want os.ErrDeadlineExceeded", err)
	}
}

func TestALostSpliceEndsTheChannel(t *testing.T) {
	d, m, ch := splicingPair(t)
	host, guest := connect(t, d, m)
	r, w := pipe(t)
	ch.fail = true
	if _, err := w.Write(make([]byte, minSplice)); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.SpliceFrom(r); !errors.Is(err, ErrLost) {
		t.Errorf("SpliceFrom() = %v, want ErrLost", err)
	}
	if n, err := io.Copy(io.Discard, host); !errors.Is(err, ErrLost) || n != 0 {
		t.Errorf("the host read %d bytes, %v, want ErrLost", n, err)
	}
}

func TestWithoutPagesThereIsNoSplice(t *testing.T) {
	d, m := pair(t)
	_, guest := connect(t, d, m)
	r, _ := pipe(t)
	if _, err := guest.SpliceFrom(r); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SpliceFrom() = %v, want errors.ErrUnsupported", err)
	}
}

func TestAPeerMayNotSendMoreThanItsWindow(t *testing.T) {
	d, m := pair(t)
	_, guest := connect(t, d, m)
	guest.mu.Lock()
	guest.window += 10 << 20 // believes that it may
	guest.mu.Unlock()
	_, err := guest.Write(make([]byte, 10<<20))
	if !errors.Is(err, ErrLost) {
		t.Errorf("Write() = %v, want ErrLost", err)
	}
}

func TestAPeerThatMakesUsAnswerAndDoesNotReadLosesTheChannel(t *testing.T) {
	d, _ := pair(t)
	d.turn <- struct{}{} // the channel takes nothing
	for range maxQueued/headerSize + 1 {
		d.post(header{kind: typeWindow, stream: 1, length: 1})
	}
	<-d.Done()
	<-d.turn
}

func TestSmallFramesTakeNoMoreMemoryThanLargeOnes(t *testing.T) {
	d, m := pair(t)
	host, guest := connect(t, d, m)
	for range 5000 {
		if _, err := guest.Write([]byte("0123456789")); err != nil {
			t.Fatal(err)
		}
	}
	if err := guest.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for {
		host.mu.Lock()
		n, end := len(host.in.list), host.sawFIN
		host.mu.Unlock()
		if n > 1 {
			t.Fatalf("50,000 bytes in %d chunks", n)
		}
		if end {
			break
		}
		<-host.arrived
	}
	if got, err := io.ReadAll(host); len(got) != 50000 || err != nil {
		t.Errorf("ReadAll() = %d bytes, %v", len(got), err)
	}
}

// FuzzFrames feeds a host with what a guest may send: it must neither panic nor take memory beyond the
// windows, and what it says about a stream must fit its state.
func FuzzFrames(f *testing.F) {
	frame := func(h header, body string) []byte { return append(h.append(nil), body...) }
	f.Add(frame(header{kind: typeData, stream: 1, length: 5}, "OK 0\n"))
	f.Add(frame(header{kind: typeData, stream: 3, flags: flagFIN, length: 4}, "last"))
	f.Add(append(frame(header{kind: typeWindow, stream: 3, length: 1 << 30}, ""),
		frame(header{kind: typeWindow, stream: 3, length: 1 << 30}, "")...))
	f.Add(frame(header{kind: typePing, flags: flagSYN, length: 7}, ""))
	f.Add(frame(header{kind: typeGoAway, length: 1}, ""))
	f.Add(frame(header{kind: typeWindow, stream: 3, flags: flagRST}, ""))
	f.Add(frame(header{kind: typeData, stream: 3, length: 1 << 31}, "much"))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		l := newLink(nowhere{})
		c := l.adopt(3, testPort)
		_ = l.adopt(1, controlPort)
		l.channel = struct {
			io.Reader
			io.WriteCloser
		}{bytes.NewReader(in), nowhere{}}
		if err := l.receive(func(uint32) error { return ErrProtocol }); err == nil {
			t.Error("receive() = nil, want the reason for which it ended")
		}
		held := 0
		for _, ch := range c.in.list {
			held += ch.w - ch.r
		}
		if held > initialWindow || held > len(in) {
			t.Errorf("%d bytes are held of %d sent", held, len(in))
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
		var buf [headerSize]byte
		r := bufio.NewReader(bytes.NewReader(in))
		if _, err := io.ReadFull(r, buf[:]); err != nil {
			return
		}
		if h, err := parseHeader(&buf); err == nil && !bytes.Equal(h.append(nil), buf[:]) {
			t.Errorf("header % x is written as % x", buf, h.append(nil))
		}
	})
}

type nowhere struct{}

func (nowhere) Read([]byte) (int, error)    { return 0, io.EOF }
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }
