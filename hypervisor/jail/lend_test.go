// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

const (
	openArg  = "try-open"
	lendUser = 1_900_077_779
)

// tryOpen says how descriptor 3 can be opened again: "r", "w", both, or neither.
func tryOpen() string {
	var how string
	for _, o := range []struct {
		name  string
		flags int
	}{{"r", unix.O_RDONLY}, {"w", unix.O_WRONLY}} {
		if fd, err := unix.Open("/proc/self/fd/3", o.flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			how += o.name
			_ = unix.Close(fd) // nothing was written
		}
	}
	return how
}

// opens runs a process of the user that tries to open a file again.
func opens(t *testing.T, f *os.File) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", openArg)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lendUser, Gid: lendUser}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// maker makes a file that ends with the test.
type maker func(t *testing.T) *os.File

// of opens a file with an owner and a mode.
func of(uid int, mode os.FileMode, flags int) maker {
	return func(t *testing.T) *os.File { t.Helper(); return fileOf(t, uid, mode, flags) }
}

func fileOf(t *testing.T, uid int, mode os.FileMode, flags int) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func memory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("coco-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { f.Close() })
	return f
}

func unnamed(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(t.TempDir(), os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// device makes a block device of a file.
func device(flags int) maker {
	return func(t *testing.T) *os.File { t.Helper(); return loop(t, flags) }
}

func loop(t *testing.T, flags int) *os.File {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("no loop device can be made here: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	f, err := os.OpenFile(device, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The user opens what it was lent as it was lent, and never for writing what is only to be read.
func TestLend(t *testing.T) {
	testvm.Need(t, testvm.Root)
	if err := Lends(lendUser, t.TempDir(), filepath.Join(t.TempDir(), "yet/to/make")); err != nil {
		t.Skipf("this file system's files cannot be lent: %v", err)
	}
	for _, tt := range []struct {
		name   string
		file   maker
		before string
		want   string
		as     bool // the very file is returned
	}{
		{name: "to read", file: of(0, 0o600, os.O_RDONLY), want: "r"},
		{name: "to write", file: of(0, 0o600, os.O_RDWR), want: "rw"},
		{name: "of another owner", file: of(4711, 0o600, os.O_RDWR), want: "rw"},
		{
			name: "that its owner may not write", file: of(0, 0o400, os.O_RDWR),
			want: "r",
		},
		{
			name: "to read, which all may", file: of(0, 0o644, os.O_RDONLY),
			before: "r", want: "r", as: true,
		},
		{
			name: "to read, which all may write", file: of(0, 0o666, os.O_RDONLY),
			before: "rw", want: "r",
		},
		{name: "without a name", file: unnamed, want: "rw"},
		{name: "in memory", file: memory, before: "rw", want: "rw", as: true},
		{name: "device to read", file: device(os.O_RDONLY), want: "r"},
		{name: "device to write", file: device(os.O_RDWR), want: "rw"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.file(t)
			if got := opens(t, f); got != tt.before {
				t.Errorf("before, it may be opened as %q, want %q", got, tt.before)
			}
			l := NewLender(Options{User: lendUser, Disks: true})
			lent, err := l.Lend(f)
			if err != nil {
				t.Fatal(err)
			}
			if lent != f {
				defer lent.Close()
			}
			l.Close()
			if got := opens(t, lent); got != tt.want || (lent == f) != tt.as {
				t.Errorf("it may be opened as %q, want %q; it is the same descriptor: %v, want %v", got, tt.want, lent == f, tt.as)
			}
			was, now := stat(t, f), stat(t, lent)
			if was.Mode&unix.S_IFMT == unix.S_IFREG && (was.Ino != now.Ino || was.Dev != now.Dev) || was.Rdev != now.Rdev {
				t.Errorf("lent is %v, want %v", now, was)
			}
			if again := stat(t, f); again.Uid != was.Uid || again.Mode != was.Mode {
				t.Errorf("its owner is %d and mode %o, were %d and %o", again.Uid, again.Mode, was.Uid, was.Mode)
			}
		})
	}
}

func stat(t *testing.T, f *os.File) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// Some programs need no lender, and what cannot be lent is refused by name.
func TestWhatIsNotLent(t *testing.T) {
	testvm.Need(t, testvm.Root)
	for _, o := range []Options{
		{Disks: true}, {User: lendUser}, {User: lendUser, Disks: true, Capabilities: []int{unix.CAP_DAC_OVERRIDE}},
	} {
		l := NewLender(o)
		f := fileOf(t, 0, 0o600, os.O_RDONLY)
		if lent, err := l.Lend(f); l != nil || lent != f || err != nil {
			t.Errorf("NewLender(%+v) = %v, which lends %v, %v", o, l, lent, err)
		}
		l.Close()
	}
	l := NewLender(Options{User: lendUser, Disks: true})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if lent, err := l.Lend(w); lent != w || err != nil {
		t.Errorf("Lend() of a pipe = %v, %v, want itself", lent, err)
	}
	status, err := os.Open("/proc/self/environ") // proc has no idmapped mounts
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	want := fmt.Sprintf("lend /proc/self/environ to user %d: mount_setattr: its file system has no idmapped mounts",
		lendUser)
	if lent, err := l.Lend(status); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Lend() = %v, %v, want %q", lent, err, want)
	}
	if err := Lends(lendUser, "/", "/proc"); err == nil || !strings.Contains(err.Error(), "no idmapped mounts") {
		t.Errorf("Lends(/proc) = %v", err)
	}
	l.Close()
	if lent, err := l.Lend(fileOf(t, 0, 0o600, os.O_RDONLY)); err == nil {
		t.Errorf("Lend() after Close() = %v", lent)
	}
}
