// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

// dial, in the environment, makes the test binary a process that connects to an address, writes a line when it has,
// and holds the connection until its input ends.
const dial = "COCO_TEST_DIAL"

func TestMain(m *testing.M) {
	if to := os.Getenv(dial); to != "" {
		c, err := net.Dial("tcp4", to)
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin)
		if err == nil {
			_ = c.Close()
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// hierarchy makes an empty cgroup that stands for the root of the guest's.
func hierarchy(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		root, err := os.MkdirTemp(dir, "coco-caller-")
		if err != nil {
			t.Skipf("no cgroup can be made: %v", err)
		}
		t.Cleanup(func() { remove(t, root) })
		return root
	}
	t.Skip("no hierarchy of cgroup v2 is mounted")
	return ""
}

func remove(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(dir); err != nil {
		t.Errorf("a cgroup is left: %v", err)
	}
}

// group makes a cgroup with the path.
func group(t *testing.T, root, path string) string {
	t.Helper()
	dir := root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		dir = filepath.Join(dir, name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func(dir string) func() { return func() { remove(t, dir) } }(dir))
	}
	return dir
}

// connect has a process of a cgroup connect to a listener. The returned function ends the process.
func connect(t *testing.T, l net.Listener, dir string) (c *net.TCPConn, end func()) {
	t.Helper()
	g, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), dial+"="+l.Addr().String())
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("a process cannot be started in a cgroup: %v", err)
	}
	end = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" {
		end()
		t.Fatalf("the process said %q, %v", line, err)
	}
	conn, err := l.Accept()
	if err != nil {
		end()
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), end
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A connection belongs to the container in whose cgroup, or a cgroup below, its process is. Others belong to none.
func TestConnectionsAreToldApart(t *testing.T) {
	root := hierarchy(t)
	f, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := listen(t)
	for path, want := range map[string]string{
		contract.CgroupBase + "a": "a", contract.CgroupBase + "b.c-1": "b.c-1", contract.CgroupBase + "a/below/it": "a",
		"/other": "", contract.CgroupBase: "", "/x" + contract.CgroupBase + "a": "",
	} {
		c, end := connect(t, l, group(t, root, path))
		got, err := f.Container(c)
		if got != want || (want == "") != errors.Is(err, ErrUnknown) {
			t.Errorf("a process in %s is of container %q, %v; want %q", path, got, err, want)
		}
		end() // the kernel keeps the socket for a while, and then a trace without a cgroup
		if got, err := f.Container(c); got != want && !errors.Is(err, ErrUnknown) {
			t.Errorf("a connection whose process in %s has ended is of container %q, %v", path, got, err)
		}
		_ = c.Close()
	}
}

// A process outside of the hierarchy's root, as the agent is, is no container.
func TestTheGuestItselfIsNoContainer(t *testing.T) {
	f, err := Open(hierarchy(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := listen(t)
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := f.Container(c.(*net.TCPConn)); got != "" || !errors.Is(err, ErrUnknown) {
		t.Errorf("this process is container %q, %v", got, err)
	}
}

// The container's cgroup may be removed while its connection is still there.
func TestARemovedCgroupIsUnknown(t *testing.T) {
	f, err := Open(hierarchy(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if path, err := f.path(1 << 40); path != "" || !errors.Is(err, ErrUnknown) {
		t.Errorf("no cgroup has the path %q, %v", path, err)
	}
}

func TestPathsOfContainers(t *testing.T) {
	const base = contract.CgroupBase
	for path, want := range map[string]string{
		base + "a": "a", base + "a/": "a", base + "a/b": "a", base + "a (deleted)": "", base: "", "/": "", "": "",
		base[:len(base)-1] + "a": "", base + "../x": "", base[1:] + "a": "", "/x" + base + "a": "",
	} {
		if got, err := containerOf(path); got != want || (want == "") != errors.Is(err, ErrUnknown) {
			t.Errorf("containerOf(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
}
