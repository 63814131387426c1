// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

const tryArg = "try-landlock"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == tryArg {
		if err := tryLandlock(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == openArg {
		fmt.Print(tryOpen())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// trial is what a process is to try, before and after it was restricted.
type trial struct {
	Version            int
	Spec               Spec
	Elsewhere          string // a directory with file
	TCP, Parent        int    // a port that listens, a process
	Abstract           string // a socket that listens
	File               int    // the descriptor, only for reading, of a file that all may write to
	Before, After      map[string]string
	tree, kept, device string // of Spec
}

// attempt is something to try, and how each version of Landlock from refusedBy on answers.
type attempt struct {
	name      string
	do        func(t *trial) error
	refusedBy int // 0: never
	with      unix.Errno
	onFiles   bool // a rule of files
}

func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func socket(domain int, use func(fd int) error) error {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fd)
}

func ioctl(path string, request uint) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.IoctlGetInt(fd, request)
	return err
}

// start runs a program that needs no files.
func start(program string) error {
	p, err := os.StartProcess(program, []string{program}, &os.ProcAttr{})
	if err == nil {
		_, err = p.Wait()
	}
	return err
}

// rndGetEntCnt asks random(4) for its entropy count, which anybody may.
const rndGetEntCnt = 0x80045200

var loopback = [4]byte{127, 0, 0, 1}

var attempts = []attempt{
	{"read a file", func(t *trial) error { return open(t.Elsewhere+"/file", unix.O_RDONLY) }, 1, unix.EACCES, true},
	{"write to a file", func(t *trial) error { return open(t.Elsewhere+"/file", unix.O_WRONLY) }, 1, unix.EACCES, true},
	{
		"list a directory", func(t *trial) error { return open(t.Elsewhere, unix.O_RDONLY|unix.O_DIRECTORY) }, 1,
		unix.EACCES, true,
	},
	{"execute a program", func(*trial) error { return start("/bin/true") }, 1, unix.EACCES, true},
	{"truncate a file", func(t *trial) error { return unix.Truncate(t.Elsewhere+"/file", 0) }, 3, unix.EACCES, true},
	{"read a file of a tree", func(t *trial) error { return open(t.tree+"/file", unix.O_RDONLY) }, 0, 0, true},
	{"list a tree", func(t *trial) error { return open(t.tree, unix.O_RDONLY|unix.O_DIRECTORY) }, 0, 0, true},
	{
		"write to a file of a tree", func(t *trial) error { return open(t.tree+"/file", unix.O_WRONLY) }, 1,
		unix.EACCES, true,
	},
	{
		"write to a file that is kept", func(t *trial) error { return open(t.kept+"/file", unix.O_RDWR|unix.O_TRUNC) }, 0, 0,
		true,
	},
	{
		"make a file in what is kept", func(t *trial) error { return open(t.kept+"/new", unix.O_RDWR|unix.O_CREAT) }, 0, 0,
		true,
	},
	{"open its own file again", func(t *trial) error { return open(own(t), unix.O_RDONLY) }, 0, 0, true},
	{"write to its own file", func(t *trial) error { return open(own(t), unix.O_WRONLY) }, 1, unix.EACCES, true},
	{"listen on TCP", func(*trial) error {
		return socket(unix.AF_INET, func(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}) })
	}, 4, unix.EACCES, false},
	{"connect by TCP", func(t *trial) error {
		return socket(unix.AF_INET, func(fd int) error {
			return unix.Connect(fd, &unix.SockaddrInet4{Addr: loopback, Port: t.TCP})
		})
	}, 4, unix.EACCES, false},
	{"ioctl on a device", func(*trial) error { return ioctl("/dev/urandom", rndGetEntCnt) }, 5, unix.EACCES, true},
	{"ioctl on its own device", func(t *trial) error { return ioctl(t.device, unix.TIOCGPTN) }, 0, 0, true},
	{"connect to an abstract socket", func(t *trial) error {
		return socket(unix.AF_UNIX, func(fd int) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: t.Abstract}) })
	}, 6, unix.EPERM, false},
	{"signal another process", func(t *trial) error { return unix.Kill(t.Parent, 0) }, 6, unix.EPERM, false},
	{"signal itself", func(*trial) error { return unix.Kill(os.Getpid(), 0) }, 0, 0, false},
}

func own(t *trial) string { return fmt.Sprintf("/proc/self/fd/%d", t.File) }

// tryLandlock is what the process does.
func tryLandlock(in string) error {
	runtime.LockOSThread() // whose restrictions these are
	var t trial
	if err := json.Unmarshal([]byte(in), &t); err != nil {
		return err
	}
	t.tree, t.kept, t.device = t.Spec.Trees[0], t.Spec.Trees[1], t.Spec.Devices[1].Path
	try := func() map[string]string {
		out := map[string]string{}
		for _, a := range attempts {
			err := a.do(&t)
			if errno := unix.Errno(0); errors.As(err, &errno) {
				err = errno
			}
			if err != nil {
				out[a.name] = err.Error()
			}
		}
		return out
	}
	t.Before = try()
	if err := t.Spec.restrict(t.Version, []int{t.File}); err != nil {
		return err
	}
	t.After = try()
	return json.NewEncoder(os.Stdout).Encode(t)
}

func newTrial(t *testing.T) trial {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"elsewhere", "tree", "kept", "own"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	abstract := fmt.Sprintf("@coco-landlock-%d", os.Getpid())
	l, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	kept := filepath.Join(dir, "kept")
	return trial{
		Spec: Spec{
			User: 1, Trees: []string{filepath.Join(dir, "tree"), kept}, Kept: []string{kept},
			Devices: []Device{{Path: "/dev/urandom"}, {Path: "/dev/ptmx"}},
		},
		Elsewhere: filepath.Join(dir, "elsewhere"), TCP: tcp.Addr().(*net.TCPAddr).Port, Abstract: abstract,
		Parent: os.Getpid(), File: 3,
	}
}

// run has a process try.
func (tr trial) run(t *testing.T) trial {
	t.Helper()
	in, err := json.Marshal(tr)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(tr.Elsewhere, "../own/file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", tryArg, string(in))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got trial
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// Each attempt succeeds before, so that it is Landlock that refuses it after. An older kernel is played by asking for
// no more than it has.
func TestLandlockRefusesWhatAVMMDoesNotNeed(t *testing.T) {
	testvm.Need(t, testvm.Root)
	version := LandlockVersion()
	if version == 0 {
		t.Skip("this kernel has no Landlock")
	}
	for v := range min(version, landlockParts[len(landlockParts)-1].version) + 1 {
		for _, root := range []bool{false, true} {
			t.Run(fmt.Sprintf("version %d, root %v", v, root), func(t *testing.T) {
				tr := newTrial(t)
				tr.Version = v
				if root {
					tr.Spec.User = 0
				}
				got := tr.run(t)
				if len(got.Before) > 0 {
					t.Errorf("refused without Landlock: %v", got.Before)
				}
				want := map[string]string{}
				for _, a := range attempts {
					if a.refusedBy > 0 && a.refusedBy <= v && !(a.onFiles && root) {
						want[a.name] = a.with.Error()
					}
				}
				if diff := cmp.Diff(want, got.After); diff != "" {
					t.Errorf("refused (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestWhatAnOldLandlockLacksIsSaid(t *testing.T) {
	for version, want := range map[int]string{
		0: "no rules for files, links between directories, truncation of files, TCP, ioctl on devices, abstract sockets " +
			"and signals: " +
			"Linux 6.12 or later with landlock in its lsm= list has them",
		4: "no rules for ioctl on devices, abstract sockets and signals: Linux 6.12 or later with landlock in its lsm= " +
			"list has them",
		6: "<nil>",
		9: "<nil>",
	} {
		if got := fmt.Sprint(LandlockLacks(version)); got != want {
			t.Errorf("LandlockLacks(%d) = %s, want %s", version, got, want)
		}
	}
}
