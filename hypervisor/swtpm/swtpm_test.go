// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package swtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
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
	data, err := Commands(control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = data.Close() }) // likewise
	tpm := tpm2.New(data)
	if err := tpm.Startup(); err != nil {
		t.Fatal(err)
	}
	return tpm, data
}

func TestEachProcessIsAFreshTPM(t *testing.T) {
	testvm.Need(t, testvm.Swtpm)
	p := start(t)
	socket, err := Serve(t.Context(), p, "/usr/bin/swtpm", nil)
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

// A certifier has the TPM to itself, and the VMM has it afterwards with what the certifier has left.
func TestACertifierLeavesSomethingInTheTPM(t *testing.T) {
	testvm.Need(t, testvm.Swtpm)
	p := start(t)
	failed := errors.New("no CA")
	if _, err := Serve(t.Context(), start(t), "/usr/bin/swtpm", func(context.Context, *os.File) error {
		return failed
	}); !errors.Is(err, failed) {
		t.Errorf("a certifier that fails: %v", err)
	}
	socket, err := Serve(t.Context(), p, "/usr/bin/swtpm", func(_ context.Context, control *os.File) error {
		c, err := net.FileConn(control)
		if err != nil {
			return err
		}
		defer c.Close()
		data, err := Commands(c.(*net.UnixConn))
		if err != nil {
			return err
		}
		defer data.Close()
		tpm := tpm2.New(data)
		return errors.Join(tpm.Startup(), tpm.Store(tpm2.AKCertificate, []byte("certificate")),
			tpm.Extend(8, [tpm2.DigestSize]byte{1}))
	})
	if err != nil {
		t.Fatal(err)
	}
	tpm, _ := connect(t, socket)
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	if got, err := tpm.Load(tpm2.AKCertificate); err != nil || string(got) != "certificate" {
		t.Errorf("Load() = %q, %v", got, err)
	}
	if got, err := tpm.PCR(8); err != nil || !bytes.Equal(got, make([]byte, 32)) {
		t.Errorf("PCR 8 is %x, %v: the VM's TPM was not started anew", got, err)
	}
	if _, err := tpm.Load(tpm2.AKCertificate + 1); err == nil {
		t.Error("an index that is not there: Load() = nil")
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
		socket, err := Serve(t.Context(), p, path, nil)
		if socket != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	}
}
