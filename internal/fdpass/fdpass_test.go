// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fdpass

import (
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestFilesArriveWithTheirMessage(t *testing.T) {
	ours, peerFile, err := Pair("test", unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	pc, err := net.FileConn(peerFile)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if err := peerFile.Close(); err != nil {
		t.Fatal(err)
	}
	peer := pc.(*net.UnixConn)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Send(ours, []byte("take it"), w, w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, files, err := Recv(peer, buf, 2)
	if err != nil || string(buf[:n]) != "take it" || len(files) != 2 {
		t.Fatalf("Recv() = %q, %d files, %v, want the message and 2 files", buf[:n], len(files), err)
	}
	if _, err := files[1].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("pipe = %q, %v, want %q", got, err, "through")
	}
}

func TestMessagesThatDoNotFitAreRefusedAndLeakNothing(t *testing.T) {
	ours, peerFile, err := Pair("test", unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	pc, err := net.FileConn(peerFile)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	before := openFiles(t)
	many := []*os.File{peerFile, peerFile, peerFile, peerFile}
	if err := Send(ours, []byte("0123456789"), many...); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Recv(pc.(*net.UnixConn), make([]byte, 4), 1); err == nil {
		t.Error("Recv() of a larger message with more files = nil, want an error")
	}
	if after := openFiles(t); after > before {
		t.Errorf("open files = %d, want %d as before", after, before)
	}
	if err := peerFile.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Send(ours, []byte("x"), peerFile); err == nil {
		t.Error("Send() of a closed file = nil, want an error")
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func FuzzParseRights(f *testing.F) {
	f.Add(unix.UnixRights(3, 4))
	f.Add([]byte("\x13\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00000")) // three bytes of rights
	f.Add([]byte{0xff, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		if fds, _ := ParseRights(b); len(fds)*4 > len(b) {
			t.Fatalf("%d descriptors in %d bytes", len(fds), len(b))
		}
	})
}
