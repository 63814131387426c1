// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package swtpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/internal/tpm2"
)

// The test program is its own launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	os.Exit(m.Run())
}

const user = 1_900_000_077

// start forks a process into a jail, as package virtcontainers/host does.
func start(t *testing.T) *launch.Process {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns)
	p, err := launch.Start(t.Context(), launch.Options{
		Jail: &jail.Options{User: user, Processes: 4096, Memory: []string{StateDir}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	})
	return p
}

// connect starts the TPM and hands it a channel for commands, as QEMU does.
func connect(t *testing.T, socket *os.File) (tpm2.TPM, io.Closer) {
	t.Helper()
	c, err := net.FileConn(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // a test's
	control := c.(*net.UnixConn)
	if err := call(control, cmdInit, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	data, peer, err := fdpass.Pair("commands", unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = data.Close() }) // likewise
	const cmdSetDataFD = 0x10
	if err := fdpass.Send(control, []byte{0, 0, 0, cmdSetDataFD}, peer); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	if _, err := control.Read(answer); err != nil || !bytes.Equal(answer, make([]byte, 4)) {
		t.Fatalf("SET_DATAFD: % x, %v", answer, err)
	}
	_ = peer.Close() // the process has its duplicate
	// TPM2_Startup(TPM_SU_CLEAR), which is the firmware's first command.
	if _, err := data.Write([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if n, err := data.Read(make([]byte, 64)); n != 10 || err != nil {
		t.Fatalf("startup: %d bytes, %v", n, err)
	}
	return tpm2.New(data), data
}

func TestEachProcessIsAFreshTPM(t *testing.T) {
	testvm.Need(t, testvm.Swtpm)
	p := start(t)
	socket, err := Serve(t.Context(), p, "/usr/bin/swtpm")
	if err != nil {
		t.Fatal(err)
	}
	tpm, _ := connect(t, socket)
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	digest := sha256.Sum256([]byte("initdata"))
	if err := tpm.Extend(8, digest); err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	for n, want := range map[int][]byte{8: want[:], 9: make([]byte, 32)} {
		if got, err := tpm.PCR(n); err != nil || !bytes.Equal(got, want) {
			t.Errorf("PCR(%d) = %x, %v; want %x", n, got, err, want)
		}
	}
	if _, err := tpm.PCR(24); err == nil {
		t.Error("PCR(24) = nil")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t", user)) ||
		!strings.Contains(string(status), "\nCapEff:\t0000000000000000\n") {
		t.Errorf("its status, %v:\n%s", err, status)
	}
	root := fmt.Sprintf("/proc/%d/root", p.PID())
	if names, err := filepath.Glob(root + "/*"); err != nil || len(names) != 1 || names[0] != root+StateDir {
		t.Errorf("its root has %v, %v; want its state only", names, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " "+StateDir+" ") {
		t.Errorf("its state is mounted on the host: %v\n%s", err, mounts)
	}
}

// A VMM that was killed closes the channel for commands.
func TestItEndsWithItsConnection(t *testing.T) {
	testvm.Need(t, testvm.Swtpm)
	p := start(t)
	socket, err := Serve(t.Context(), p, "/usr/bin/swtpm")
	if err != nil {
		t.Fatal(err)
	}
	_, data := connect(t, socket)
	if err := errors.Join(socket.Close(), data.Close()); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Error("it runs on")
	}
}

func TestAProgramThatIsNoTPMIsTold(t *testing.T) {
	for text, want := range map[string]string{
		"echo no such option >&2; exit 1":                  "it says: no such option",
		"head -c 8 <&3 >/dev/null":                         "it does not answer",
		`head -c 8 <&3 >/dev/null; printf '\0\0\0\11' >&3`: "command 0x2 fails with code 0x9",
	} {
		path := filepath.Join(t.TempDir(), "swtpm")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		p, err := launch.Start(t.Context(), launch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		socket, err := Serve(t.Context(), p, path)
		if socket != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	}
}
