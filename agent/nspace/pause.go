// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nspace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nobody is the user and group id of a pause process.
const nobody = 65534

// readyFD is the descriptor on which Pause reports that it has dropped its privileges, or its error.
const readyFD = 3

// pause starts the init process of a new pid namespace. It ends with the machine. Containers join its
// namespace and may be allowed to trace its processes, so they join only once Pause has dropped its
// privileges.
func (m *Maker) pause(file string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child, err := m.Reaper.Spawn("/proc/self/exe", []string{PauseName}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}, // no files of cgroups
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), w.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	})
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("make shared pid namespace: %w", err)
	}
	if err = awaitReady(r); err == nil {
		err = pin(fmt.Sprintf("/proc/%d/ns/pid", child.Pid()), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make shared pid namespace: %w", err), child.Signal(unix.SIGKILL))
	}
	return nil
}

const ready = "ready"

// awaitReady reads a pause process's report. A process that ends without one has failed too.
func awaitReady(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 4096))
	if err == nil && string(b) != ready {
		err = fmt.Errorf("its first process did not come up: %s", strings.ToValidUTF8(string(b), "?"))
	}
	return err
}

// Pause runs as the init of a pid namespace: it drops its privileges, reports that, and reaps orphans until it
// is killed.
func Pause() {
	err := giveUp()
	text := ready
	if err != nil {
		text = err.Error()
	}
	_, werr := unix.Write(readyFD, []byte(text))
	_ = unix.Close(readyFD)
	if err != nil || werr != nil {
		return // the agent says so
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	for {
		collectOrphans()
		<-ch
	}
}

func collectOrphans() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

// giveUp leaves this process an empty root, another user, no capability and no way to gain one. A container
// with CAP_SYS_PTRACE that takes it over gains no rights by that.
func giveUp() error {
	if err := closeOthers(); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := emptyRoot(); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	for c := range uintptr(64) {
		err := everyThread(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	// The kernel takes the capabilities with the last id of root.
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody),
		syscall.Setresuid(nobody, nobody, nobody)); err != nil {
		return fmt.Errorf("change user: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&none)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil { // of the process
		return fmt.Errorf("not dumpable: %w", err)
	}
	return nil
}

// closeOthers closes descriptors that this process should not have inherited. The Go runtime's own epoll descriptor
// stays: it gives access to nothing, and the runtime needs it.
func closeOthers() error {
	const fds = "/proc/self/fd"
	entries, err := os.ReadDir(fds)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		to, err := os.Readlink(filepath.Join(fds, e.Name()))
		if fd <= readyFD || err != nil || strings.HasPrefix(to, "anon_inode:") { // err: that of the listing
			continue
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// everyThread makes a system call in all threads: credentials are a thread's.
func everyThread(call, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(call, a, b, c, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// emptyRoot makes an empty, read-only file system the root of this process, which is alone in its mount
// namespace.
func emptyRoot() error {
	const at = "/proc" // there in every system, and not needed here any more
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []struct {
		name string
		do   func() error
	}{
		{"private mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount", func() error { return unix.Mount("empty", at, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555") }},
		{"enter", func() error { return unix.Chdir(at) }},
		{"pivot_root", func() error { return unix.PivotRoot(".", ".") }},
		{"leave the old one", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"enter the new one", func() error { return unix.Chdir("/") }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}
