// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nspace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/internal/testvm"
)

func TestMain(m *testing.M) {
	if os.Args[0] == PauseName {
		_, _, _ = os.Pipe() // the agent has the Go runtime's poller, and could have more
		Pause()
		return
	}
	os.Exit(m.Run())
}

// TestSharedPIDs: the init of a shared pid namespace, as the kernel describes it, has nothing that would be
// worth to take over, in none of its threads.
func TestSharedPIDs(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns) // a root that may make namespaces
	r := reap.New()
	defer r.Close()
	m := &Maker{Dir: filepath.Join(t.TempDir(), "ns"), Reaper: r}
	p, err := m.SharedPIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(p, unix.MNT_DETACH) //nolint:errcheck // the test's own
	pid := initOf(t, p)
	child, err := r.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Signal(unix.SIGKILL)
		<-child.Done()
	}()
	proc := fmt.Sprintf("/proc/%d/", pid)
	threads, err := filepath.Glob(proc + "task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	for _, f := range threads {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
			"CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n",
		} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s: no %q in\n%s", f, want, b)
			}
		}
	}
	if entries, err := os.ReadDir(proc + "root"); err != nil || len(entries) != 0 {
		t.Errorf("its root has %v, %v; want nothing", entries, err)
	}
	if err := os.WriteFile(proc+"root/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to its root: %v, want EROFS", err)
	}
	if b, err := os.ReadFile(proc + "mountinfo"); err != nil || strings.Count(string(b), "\n") != 1 {
		t.Errorf("its mounts:\n%s%v", b, err)
	}
	var st unix.Stat_t // the kernel gives files of a process that is not dumpable to root
	if err := unix.Stat(proc+"environ", &st); err != nil || st.Uid != 0 {
		t.Errorf("its environ belongs to %d, %v: it is dumpable", st.Uid, err)
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		to, err := os.Readlink(proc + "fd/" + f.Name())
		if err != nil || to != "/dev/null" && !strings.HasPrefix(to, "anon_inode:") {
			t.Errorf("descriptor %s leads to %s, %v", f.Name(), to, err)
		}
	}
}

// initOf finds the process that is 1 in a pid namespace.
func initOf(t *testing.T, ns string) int {
	t.Helper()
	var want unix.Stat_t
	if err := unix.Stat(ns, &want); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		var st unix.Stat_t
		if unix.Stat(f, &st) == nil && st.Ino == want.Ino {
			pid, err := strconv.Atoi(strings.Split(f, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("nobody is in the namespace")
	return 0
}

func TestMake(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns) // a root that may make namespaces
	m := &Maker{Dir: filepath.Join(t.TempDir(), "ns")}
	paths, err := m.Make("pod-name", map[string]string{"kernel/shmmni": "1234"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range paths {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	if len(paths) != 2 {
		t.Errorf("namespaces %v, want ipc and uts", paths)
	}
	for kind, p := range paths {
		var made, own unix.Stat_t
		if err := unix.Stat(p, &made); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat("/proc/self/ns/"+kind, &own); err != nil {
			t.Fatal(err)
		}
		if made.Ino == own.Ino {
			t.Errorf("%s: it is our own", kind)
		}
	}
	name := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		f, err := os.Open(paths["uts"])
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWUTS)
		}
		var u unix.Utsname
		if err == nil {
			err = unix.Uname(&u)
		}
		if err != nil {
			t.Error(err)
		}
		name <- unix.ByteSliceToString(u.Nodename[:])
	}()
	if got := <-name; got != "pod-name" {
		t.Errorf("host name %q in the namespace", got)
	}
	if own, err := os.Hostname(); err != nil || own == "pod-name" {
		t.Errorf("our own host name is %q, %v", own, err)
	}
}
