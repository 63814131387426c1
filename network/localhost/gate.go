// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package localhost takes connections to the loopback address of a pod's network namespace on the host and
// hands them to its caller, which connects them with the loopback of the VM. The runtime's port-forward
// enters the namespace and connects to localhost there; but the pod's services listen in the VM.
//
// A Gate is a pair of listeners on 127.0.0.1 and ::1 of the namespace, and one rule of nftables that
// sends every TCP connection through the namespace's loopback device to them. The kernel's connection tracking
// remembers the original port. The rule belongs to a socket that the Gate holds,
// so the kernel removes it when the Gate is closed or its process ends.
package localhost

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/network/netns"
)

// Dial opens a connection with what listens on a port of the VM's loopback.
type Dial func(ctx context.Context, port uint16) (net.Conn, error)

// Gate is open from Open to Close.
type Gate struct {
	listeners []*net.TCPListener
	rules     *os.File // the netlink socket that owns the rule
}

// Open makes the gate of a network namespace. Connections wait until Serve.
func Open(path string) (_ *Gate, err error) {
	g := &Gate{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("localhost of %s: %w", path, err), g.Close())
		}
	}()
	return g, netns.In(path, func() error {
		port, err := g.listen()
		if err != nil {
			return err
		}
		g.rules, err = redirect(port)
		return err
	})
}

// listen makes sockets by hand: the net package would make them on any thread, in another namespace.
func (g *Gate) listen() (port uint16, err error) {
	first, err := listener(unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		return 0, err
	}
	g.listeners = append(g.listeners, first)
	port = uint16(first.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
	second, err := listener(unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: int(port)})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return port, nil // no IPv6 in this namespace
	}
	if err != nil {
		return 0, err
	}
	g.listeners = append(g.listeners, second)
	return port, nil
}

func listener(family int, addr unix.Sockaddr) (*net.TCPListener, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "localhost")
	defer f.Close() // FileListener has a copy
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	const backlog = 64
	if err := errors.Join(unix.Bind(fd, addr), unix.Listen(fd, backlog)); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// Serve leads connections through until Close or the end of ctx, and then ends those that are open.
func (g *Gate) Serve(ctx context.Context, dial Dial) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		for _, l := range g.listeners {
			_ = l.Close()
		}
	})
	var wg sync.WaitGroup
	for _, l := range g.listeners {
		wg.Go(func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return // closed
				}
				wg.Go(func() { pass(ctx, c, dial) })
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	stop()
	cancel()
}

// Close ends the gate; idempotent.
func (g *Gate) Close() error {
	var errs []error
	for _, l := range g.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if g.rules != nil {
		if err := g.rules.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pass leads one connection through. One that nobody takes at the other end is reset.
func pass(ctx context.Context, c *net.TCPConn, dial Dial) {
	defer c.Close()
	port, err := meant(c)
	var far net.Conn
	if err == nil {
		far, err = dial(ctx, port)
	}
	if err != nil {
		_ = c.SetLinger(0)
		return
	}
	Relay(ctx, c, far)
}

// Relay copies between two connections until both directions have ended, or ctx has, and closes both.
func Relay(ctx context.Context, a, b net.Conn) {
	defer context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })()
	var wg sync.WaitGroup
	half := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil {
			_, _ = a.Close(), b.Close()
			return
		}
		if w, ok := to.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite() // it may be closed already
			return
		}
		_ = to.Close()
	}
	wg.Go(func() { half(a, b) })
	wg.Go(func() { half(b, a) })
	wg.Wait()
	_, _ = a.Close(), b.Close()
}

// meant is the port that the connection was made to, before the rule changed it: SO_ORIGINAL_DST of
// linux/netfilter_ipv4.h, and of the same number for IPv6. The x/sys functions are those that
// return as many bytes as the kernel writes.
func meant(c *net.TCPConn) (port uint16, err error) {
	const originalDst = 80
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	v4 := c.LocalAddr().(*net.TCPAddr).IP.To4() != nil
	cerr := rc.Control(func(fd uintptr) {
		if v4 {
			var a *unix.IPv6Mreq // struct sockaddr_in: family, port, address
			if a, err = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, originalDst); err == nil {
				port = binary.BigEndian.Uint16(a.Multiaddr[2:])
			}
			return
		}
		var a *unix.IPv6MTUInfo // begins with a struct sockaddr_in6
		if a, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, originalDst); err == nil {
			port = a.Addr.Port<<8 | a.Addr.Port>>8
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("which port was meant: %w", err)
	}
	return port, nil
}
