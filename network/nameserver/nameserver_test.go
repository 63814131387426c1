// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nameserver

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/lookup"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func query(id byte) []byte {
	return []byte{0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1}
}

func answerTo(q []byte) []byte {
	b := append([]byte(nil), q...)
	b[2] |= 0x80
	return append(b, "the answer"...)
}

// engine is a resolver at 127.0.0.11:53 of a new namespace. It does not answer questions with the id 9.
func engine(t *testing.T) string {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns)
	ns := filepath.Join(t.TempDir(), "ns")
	if err := netns.New(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete(ns); err != nil {
			t.Error(err)
		}
	})
	var udp net.PacketConn
	var tcp net.Listener
	if err := netns.In(ns, func() error {
		if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
			return err
		}
		at := &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 11}}
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "engine")
			defer f.Close()
			if err := unix.Bind(fd, at); err != nil {
				return err
			}
			if kind == unix.SOCK_DGRAM {
				if udp, err = net.FilePacketConn(f); err != nil {
					return err
				}
				continue
			}
			if err := unix.Listen(fd, 8); err != nil {
				return err
			}
			if tcp, err = net.FileListener(f); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{}, 2)
	t.Cleanup(func() {
		_, _ = udp.Close(), tcp.Close()
		<-ended
		<-ended
	})
	go func() {
		defer func() { ended <- struct{}{} }()
		buf := make([]byte, lookup.MaxQuery)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if buf[1] != 9 {
				_, _ = udp.WriteTo(answerTo(query(100)), from) // of another question, which is left out
				_, _ = udp.WriteTo(answerTo(buf[:n]), from)
			}
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			_, _ = io.ReadFull(c, size[:])
			q := make([]byte, binary.BigEndian.Uint16(size[:]))
			_, _ = io.ReadFull(c, q)
			b := answerTo(q)
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			_ = c.Close()
		}
	}()
	return ns
}

func TestTheEnginesResolverIsAskedInItsNamespace(t *testing.T) {
	a, err := Open(engine(t))
	if err != nil {
		t.Fatal(err)
	}
	guest, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, far) }()
	_ = guest.SetDeadline(time.Now().Add(20 * time.Second))
	for _, tt := range []struct {
		in   lookup.Message
		want []byte
	}{
		{lookup.Message{Number: 1, Body: query(1)}, answerTo(query(1))},
		{lookup.Message{Number: 2, Body: query(2), TCP: true}, answerTo(query(2))},
		{lookup.Message{Number: 3, Body: []byte("no question")}, []byte{}},
		{lookup.Message{Number: 4, Body: query(9)}, []byte{}}, // nobody answers
	} {
		begun := time.Now()
		if err := lookup.Write(guest, tt.in); err != nil {
			t.Fatal(err)
		}
		m, err := lookup.Read(guest, lookup.MaxAnswer)
		if err != nil || m.Number != tt.in.Number || m.TCP != tt.in.TCP || string(m.Body) != string(tt.want) {
			t.Errorf("%+v is answered with %+v, %v", tt.in, m, err)
		}
		t.Logf("question %d took %v", m.Number, time.Since(begun))
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestAGuestThatBreaksTheRulesIsLeft(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns)
	a, err := Open("/proc/self/ns/net") // whose 127.0.0.11 does not answer
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for name, bytes := range map[string]string{
		"a long question": "\x00\x01\x00\xff\xff", "no frame": "\x00\x01\x09\x00\x01",
	} {
		guest, far := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- a.Serve(t.Context(), far) }()
		if _, err := io.WriteString(guest, bytes); err != nil {
			t.Fatal(err)
		}
		if err := <-served; err == nil {
			t.Errorf("%s: Serve() ends without an error", name)
		}
		_ = guest.Close()
	}
	guest, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- a.Serve(t.Context(), far) }()
	_ = guest.SetDeadline(time.Now().Add(20 * time.Second))
	if err := lookup.Write(guest, lookup.Message{Number: 1, Body: query(1)}); err != nil {
		t.Fatal(err)
	}
	if m, err := lookup.Read(guest, lookup.MaxAnswer); err != nil || len(m.Body) != 0 {
		t.Errorf("without a resolver: %+v, %v", m, err)
	}
	_ = guest.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v after the guest's end", err)
	}
	if _, err := Open("/etc/passwd"); err == nil {
		t.Error("Open() of a file that is no namespace")
	}
}
