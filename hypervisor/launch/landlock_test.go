// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/internal/testvm"
)

// probeArg makes the test program try what Landlock refuses to a VMM, and write to descriptor 3 how that ended.
const probeArg = "probe"

func probe(abstract, port string) {
	socket := func(domain int, use func(fd int) error) error {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return use(fd)
	}
	open := func(path string, flags int) error {
		_, err := unix.Open(path, flags, 0)
		return err
	}
	local := unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	out := map[string]string{}
	for name, err := range map[string]error{
		"read its file again":     open("/proc/self/fd/4", unix.O_RDONLY),
		"write to its file":       open("/proc/self/fd/4", unix.O_WRONLY),
		"read beside its file":    open("/proc/self/fd/5/beside", unix.O_RDONLY),
		"list the root":           open("/", unix.O_RDONLY|unix.O_DIRECTORY),
		"list a program's tree":   open("/usr", unix.O_RDONLY|unix.O_DIRECTORY),
		"write to its own device": open("/dev/null", unix.O_WRONLY),
		"listen on TCP":           socket(unix.AF_INET, func(fd int) error { return unix.Bind(fd, &local) }),
		"connect by TCP": socket(unix.AF_INET, func(fd int) error {
			to := local
			to.Port, _ = strconv.Atoi(port)
			return unix.Connect(fd, &to)
		}),
		"connect to an abstract socket": socket(unix.AF_UNIX, func(fd int) error {
			return unix.Connect(fd, &unix.SockaddrUnix{Name: abstract})
		}),
	} {
		var errno unix.Errno
		switch {
		case errors.As(err, &errno):
			out[name] = unix.ErrnoName(errno)
		case err != nil:
			out[name] = err.Error()
		}
	}
	_ = json.NewEncoder(os.NewFile(3, "out")).Encode(out) // an answer that is missing fails the test
}

// probed runs the probe in a process, and returns what was refused.
func probed(t *testing.T, o *jail.Options) map[string]string {
	t.Helper()
	abstract := fmt.Sprintf("@coco-launch-%d", os.Getpid())
	l, err := net.Listen("unix", abstract)
	tcp, terr := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err, terr); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer tcp.Close()
	dir := t.TempDir()
	for _, name := range []string{"own", "beside"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o666); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	own, oerr := os.Open(filepath.Join(dir, "own"))
	in, ierr := os.Open(dir)
	if err := errors.Join(err, oerr, ierr); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer own.Close()
	defer in.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, Options{Jail: o})
	argv := []string{exe, probeArg, abstract, strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port)}
	if err := p.Exec(t.Context(), argv, nil, []*os.File{out, own, in}); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var refused map[string]string
	if err := json.Unmarshal(text, &refused); err != nil {
		t.Fatalf("%v: it said %q, ended with %s, %s", err, text, p.ExitStatus(), p.Stderr())
	}
	return refused
}

// Landlock forbids operations that the jail allows: the same program may do all of them without Landlock.
func TestLandlockHoldsInAJail(t *testing.T) {
	testvm.Need(t, testvm.Root)
	if err := jail.LandlockLacks(jail.LandlockVersion()); err != nil {
		t.Skip(err)
	}
	if got := probed(t, nil); len(got) > 0 {
		t.Errorf("refused without a jail: %v", got)
	}
	want := map[string]string{
		"write to its file": "EACCES", "read beside its file": "EACCES", "list the root": "EACCES",
		"listen on TCP": "EACCES", "connect by TCP": "EACCES", "connect to an abstract socket": "EPERM",
	}
	if diff := cmp.Diff(want, probed(t, &jail.Options{User: testUser})); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}
