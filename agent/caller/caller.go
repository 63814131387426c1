// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package caller finds the container whose process has opened a TCP connection to a service on the guest's loopback
// address. All containers of a pod share the guest's network, so the address tells nothing. But the kernel notes for
// each socket the cgroup of the process that made it, and the agent gives each container a cgroup of its own.
//
// The socket of the other end is looked up with sock_diag (man 7 sock_diag, attribute INET_DIAG_CGROUP_ID), and the
// cgroup's path by its number, which is a file handle of the cgroup file system. A socket that leads to no container is
// Unknown: a process of the guest itself (so the agent, which forwards ports for the host), a socket that is closed, a
// cgroup that is gone.
//
// A container that is privileged can make sockets in other cgroups. It counts as the whole pod.
package caller

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/rtnl"
)

// ErrUnknown says that a connection does not come from a container.
var ErrUnknown = errors.New("the connection comes from no container of this pod")

func unknown(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnknown, fmt.Sprintf(format, args...))
}

// timeout bounds each wait for the kernel.
const timeout = 5 * time.Second

// Finder finds callers. Its methods may be called by several goroutines.
type Finder struct {
	diag *rtnl.Conn
	root string // of the cgroup hierarchy
}

// Open makes a Finder. root is where the hierarchy of cgroup v2 is mounted when the first container is there. The
// kernel module tcp_diag has to be loaded.
func Open(root string) (*Finder, error) {
	diag, err := rtnl.OpenDiag(timeout)
	if err != nil {
		return nil, err
	}
	return &Finder{diag, filepath.Clean(root)}, nil
}

// Close closes the way to the kernel.
func (f *Finder) Close() error { return f.diag.Close() }

// Container returns the id of the container whose process opened the other end of an accepted connection. The error is
// ErrUnknown, or the kernel's.
func (f *Finder) Container(c *net.TCPConn) (string, error) {
	service, client := addr(c.LocalAddr()), addr(c.RemoteAddr())
	if !client.Addr().Is4() || !client.Addr().IsLoopback() {
		return "", unknown("%s is not of the loopback device", client)
	}
	number, err := f.cgroupOf(client, service)
	if err != nil {
		return "", err
	}
	// While this end is open, no other socket can have the client's address and port with this peer: a socket that was
	// made in their place would have had to reset the connection. So the answer was about the caller if this end is
	// open still.
	if !open(c) {
		return "", unknown("it was closed meanwhile")
	}
	path, err := f.path(number)
	if err != nil {
		return "", err
	}
	return containerOf(path)
}

// containerOf returns the container of a cgroup, which may be one below the container's own.
func containerOf(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, contract.CgroupBase)
	id, _, _ := strings.Cut(rest, "/")
	if !ok || !ident.ID(id) {
		return "", unknown("its process is in cgroup %.200q", path)
	}
	return id, nil
}

func addr(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// Layout of a question to sock_diag and of its answer (include/uapi/linux/inet_diag.h and sock_diag.h).
const (
	byFamily   = 20 // SOCK_DIAG_BY_FAMILY
	cgroupID   = 21 // INET_DIAG_CGROUP_ID, a 64-bit number
	messageLen = 72 // struct inet_diag_msg; attributes follow
	anyState   = 0xffffffff
	noCookie   = 0xffffffffffffffff
)

// question asks for the socket of this guest with the local address own and the peer.
func question(own, peer netip.AddrPort) []byte {
	q := []byte{unix.AF_INET, unix.IPPROTO_TCP, 0, 0}
	q = binary.NativeEndian.AppendUint32(q, anyState)
	q = binary.BigEndian.AppendUint16(q, own.Port())
	q = binary.BigEndian.AppendUint16(q, peer.Port())
	for _, a := range []netip.Addr{own.Addr(), peer.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		q = append(q, field[:]...)
	}
	q = binary.NativeEndian.AppendUint32(q, 0) // any interface
	return binary.NativeEndian.AppendUint64(q, noCookie)
}

// cgroupOf returns the number of the cgroup of the client's socket.
func (f *Finder) cgroupOf(client, service netip.AddrPort) (uint64, error) {
	m, err := f.diag.Get(byFamily, question(client, service))
	if errors.Is(err, unix.ENOENT) {
		// ENOENT is also the answer of a kernel without tcp_diag. Then nobody is known.
		return 0, unknown("there is no socket %s", client)
	}
	if err != nil {
		return 0, fmt.Errorf("socket %s: %w", client, err)
	}
	if len(m.Body) < messageLen {
		return 0, fmt.Errorf("socket %s: an answer of %d bytes: %w", client, len(m.Body), unix.EPROTO)
	}
	for kind, value := range rtnl.Attrs(m.Body[messageLen:]) {
		if kind == cgroupID && len(value) == 8 {
			return binary.NativeEndian.Uint64(value), nil
		}
	}
	return 0, unknown("socket %s has no cgroup: it is closed", client)
}

// kernfs is the type of file handles that have the number of a directory (FILEID_KERNFS, include/linux/exportfs.h).
const kernfs = 0xfe

// path returns the path of a cgroup below the hierarchy's root, beginning with a slash.
func (f *Finder) path(number uint64) (string, error) {
	root, err := os.Open(f.root)
	if err != nil {
		return "", fmt.Errorf("hierarchy of cgroups: %w", err)
	}
	defer root.Close()
	h := unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, number))
	fd, err := unix.OpenByHandleAt(int(root.Fd()), h, unix.O_PATH|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return "", unknown("its cgroup is gone")
	}
	if err != nil {
		return "", fmt.Errorf("cgroup %d: %w", number, err)
	}
	dir := os.NewFile(uintptr(fd), "cgroup")
	defer dir.Close()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("cgroup %d: %w", number, err)
	}
	path, ok := strings.CutPrefix(name, f.root)
	if !ok {
		return "", unknown("its cgroup %.200q is of another hierarchy", name)
	}
	return path, nil
}

// open says whether neither end of a connection has closed it as a whole. The peer may have ended its direction.
func open(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	state := uint8(0)
	if err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = info.State
		}
	}); err != nil {
		return false
	}
	return state == unix.BPF_TCP_ESTABLISHED || state == unix.BPF_TCP_CLOSE_WAIT
}
