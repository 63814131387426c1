// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFindPort(t *testing.T) {
	class := t.TempDir()
	for dev, name := range map[string]string{
		"vport1p0": "console", "vport1p1": contract.SerialPort + "\n",
		"vport1p2": "",
	} {
		if err := os.MkdirAll(filepath.Join(class, dev), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(class, dev, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if dev, ok := findPort(class, contract.SerialPort); dev != "/dev/vport1p1" || !ok {
		t.Errorf("findPort = %q, %v", dev, ok)
	}
	if _, ok := findPort(class, "other"); ok {
		t.Error("found what is not there")
	}
	if _, ok := findPort(class+"/none", contract.SerialPort); ok {
		t.Error("found without the class")
	}
}

func TestWaitPortEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if dev, err := WaitPort(ctx, "no.such.port"); err == nil {
		t.Errorf("WaitPort = %q", dev)
	}
}

// TestSession serves ports over one channel, as over a virtio-serial port.
func TestSession(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	echo := func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}
	done := make(chan error, 1)
	go func() {
		done <- serveSession(ctx, ends[0], Ports{contract.PortAgent: echo}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	d := portmux.NewDialer(ends[1])
	defer d.Close()
	c, err := d.Dial(ctx, contract.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("echo %q, %v", got, err)
	}
	if _, err := d.Dial(ctx, contract.PortStreams); err == nil {
		t.Error("a port that nobody serves was connected")
	}
	_ = c.Close()
	cancel()
	<-done
}

// TestSerialReadsEndOnlyAfterTheFirstByte uses a FIFO in place of a port.
func TestSerialReadsEndOnlyAfterTheFirstByte(t *testing.T) {
	name := filepath.Join(t.TempDir(), "port")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSerial(name) // read and write: the FIFO never ends by itself
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = s.Write([]byte("hello")) }()
	got := make([]byte, 5)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	woken := make(chan error, 1)
	go func() {
		_, err := s.Read(got)
		woken <- err
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-woken; err == nil {
		t.Error("a read of a closed port returned without an error")
	}
}
