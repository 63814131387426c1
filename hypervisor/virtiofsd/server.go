// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtiofsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/ownthread"
)

const (
	firstFD      = 3 // the descriptor of the first file of Process.Exec
	socketName   = "s"
	exitTimeout  = time.Second      // for a failed process to exit, which completes its standard error
	readyTimeout = 10 * time.Second // from exec to the first answer; 10 ms when the host is idle
)

// Server is a running process that serves one VM.
type Server struct {
	dir  string
	root unix.Stat_t // of dir

	mu sync.Mutex
	ns *os.File // guarded by mu; the process's mount namespace
}

// Serve turns proc into the program, which serves dir, an empty directory. It returns when the program
// answers and is confined, with the VMM's end of the connection, which is the caller's. On error the
// process may run or not: the caller ends it.
func (d Daemon) Serve(ctx context.Context, proc hypervisor.Process, dir string) (*Server, *os.File, error) {
	s := &Server{dir: dir}
	socket, err := s.serve(ctx, d, proc)
	if err == nil {
		return s, socket, nil
	}
	t := time.NewTimer(exitTimeout)
	defer t.Stop()
	select {
	case <-proc.Done(): // then all that it said has arrived
	case <-t.C:
	}
	if words := strings.TrimSpace(proc.Stderr()); words != "" {
		err = fmt.Errorf("%w; it says: %s", err, words)
	}
	return nil, nil, errors.Join(fmt.Errorf("start %s: %w", d.Path, err), s.Close())
}

func (s *Server) serve(ctx context.Context, d Daemon, proc hypervisor.Process) (socket *os.File, err error) {
	if err := unix.Stat(s.dir, &s.root); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: s.dir, Err: err}
	}
	socket, err = s.start(ctx, d, proc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = socket.Close() // nobody has used it
		}
	}()
	if err := hello(int(socket.Fd())); err != nil {
		return nil, fmt.Errorf("it does not answer: %w", err)
	}
	if s.ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", proc.PID())); err != nil {
		return nil, err
	}
	return socket, s.inside(func() error {
		return os.NewSyscallError("mount", unix.Mount("", "/", "",
			unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	})
}

// start executes the program with a socket to listen on and makes the one connection that there will
// be: nobody else finds a name of the socket.
func (s *Server) start(ctx context.Context, d Daemon, proc hypervisor.Process) (socket *os.File, err error) {
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	listener, err := newSocket("listener")
	if err != nil {
		return nil, err
	}
	defer listener.Close() // the process has its own, and with its end our connection ends
	socket, err = newSocket("virtiofsd")
	if err != nil {
		return nil, err
	}
	// Through the descriptor the path is short enough for a socket, however long the directory's is.
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)}
	for _, step := range []func() error{
		func() error { return os.NewSyscallError("bind", unix.Bind(int(listener.Fd()), addr)) },
		func() error { return os.NewSyscallError("listen", unix.Listen(int(listener.Fd()), 1)) },
		func() error { return os.NewSyscallError("connect", unix.Connect(int(socket.Fd()), addr)) },
		func() error { return os.Remove(filepath.Join(s.dir, socketName)) },
		func() error {
			return proc.Exec(ctx, d.argv(firstFD, s.dir), []string{"PATH=/usr/bin:/bin", "LANG=C"}, []*os.File{listener})
		},
	} {
		if err := step(); err != nil {
			return nil, errors.Join(err, socket.Close())
		}
	}
	return socket, nil
}

func newSocket(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// hello asks for the features, as the VMM will: the first answer comes when the program has confined
// itself. (vhost-user: header of request, flags and size; request 1 is GET_FEATURES, version 1.)
func hello(fd int) error {
	wait := unix.NsecToTimeval(readyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Sendto(fd, []byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, unix.MSG_NOSIGNAL, nil); err != nil {
		return os.NewSyscallError("send", err)
	}
	const size = 12 + 8
	answer := make([]byte, size)
	for {
		n, _, err := unix.Recvfrom(fd, answer, unix.MSG_WAITALL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("nothing within %s", readyTimeout)
		case err != nil:
			return os.NewSyscallError("recv", err)
		case n != size || answer[0] != 1:
			return fmt.Errorf("an answer of %d bytes", n)
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
			&unix.Timeval{}))
	}
}

// inside runs fn in the process's mount namespace, once it is sure to be nobody else's.
func (s *Server) inside(fn func() error) error {
	done := make(chan error)
	ownthread.Go(func() {
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("enter its mount namespace: %w", err)
			}
			var st unix.Stat_t
			if err := unix.Stat("/", &st); err != nil {
				return os.NewSyscallError("stat", err)
			}
			if st.Dev != s.root.Dev || st.Ino != s.root.Ino {
				return fmt.Errorf("it is not confined to %s", s.dir)
			}
			return fn()
		}()
	})
	return <-done
}

// Share shows a file or directory of the host to the guest, under a name in the root of what is served. It
// is what a recursive, private bind mount would show: mounts that are there now and none that come.
func (s *Server) Share(source *os.File, name string, readOnly bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return fmt.Errorf("share %s: the server is closed: %w", source.Name(), errdefs.ErrFailedPrecondition)
	}
	if err := s.share(source, filepath.Base(name), readOnly); err != nil {
		return fmt.Errorf("share %s with the VM: %w", source.Name(), err)
	}
	return nil
}

func (s *Server) share(source *os.File, name string, readOnly bool) error {
	fd, err := unix.OpenTree(int(source.Fd()), "",
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	tree := os.NewFile(uintptr(fd), source.Name())
	defer tree.Close() // only a reference
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	at := filepath.Join(s.dir, name)
	if err := makePoint(tree, at); err != nil {
		return err
	}
	err = s.inside(func() error {
		return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, "/"+name, unix.MOVE_MOUNT_F_EMPTY_PATH))
	})
	if err != nil {
		err = errors.Join(err, os.Remove(at))
	}
	return err
}

// makePoint makes what a tree is mounted on: a directory or an empty file.
func makePoint(tree *os.File, at string) error {
	st, err := tree.Stat()
	if err != nil {
		return err
	}
	switch m := st.Mode(); {
	case m.IsDir():
		return os.Mkdir(at, 0o700)
	case m.IsRegular():
		return os.WriteFile(at, nil, 0o600)
	case m&fs.ModeSocket != 0:
		return fmt.Errorf("it is a socket, which nobody listens on in a VM: %w", errdefs.ErrInvalidArgument)
	default:
		return fmt.Errorf("it is a named pipe or a device, which means nothing in a VM: %w", errdefs.ErrInvalidArgument)
	}
}

// Close gives up the namespace, and with the process's end what is mounted there. The process is the
// caller's.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return nil
	}
	err := s.ns.Close()
	s.ns = nil
	return err
}
