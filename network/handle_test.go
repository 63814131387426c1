// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
)

func TestRealWiring(t *testing.T) {
	host, podNS := pod(t)
	h := open(t, podNS)
	before := snapshot(t, h)
	w, err := network.Plan(before, network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []network.Redirect{{Link: "eth0", Index: 2, Tap: "coco0_eth0", MAC: podMAC, MTU: 1400, Queues: 1}}
	if d := cmp.Diff(want, w.Redirects); d != "" {
		t.Fatalf("redirects (-want +got):\n%s", d)
	}
	if got := w.Guest.String(); got != "eth0 "+podMAC+" mtu 1400 10.9.0.2/24 fd09::2/64 fe80::ff:fe00:2/64; default via "+
		"10.9.0.1 dev eth0 mtu 1300; 10.9.0.0/24 dev eth0 src 10.9.0.2; fd09::/64 dev eth0 metric 256; fe80::/64 dev eth0 "+
		"metric 256; 10.9.0.7 lladdr "+hostMAC {
		t.Errorf("guest = %s", got)
	}
	nics, u, err := network.Apply(t.Context(), h, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("the tap is quiet, up and as large as the link", func(t *testing.T) {
		do(t, podNS, func(h *netlink.Handle) error {
			l, err := h.LinkByName("coco0_eth0")
			if err != nil {
				return err
			}
			addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
			if err != nil || len(addrs) > 0 {
				return fmt.Errorf("addresses %v, %w", addrs, err)
			}
			if a := l.Attrs(); a.MTU != 1400 || a.Flags&net.FlagUp == 0 {
				return fmt.Errorf("mtu %d, flags %s", a.MTU, a.Flags)
			}
			return nil
		})
	})
	t.Run("frames reach the guest and nobody else, and come back", func(t *testing.T) { echo(t, host, nics[0]) })
	t.Run("a second VM is refused", func(t *testing.T) {
		_, err := network.Plan(snapshot(t, h), network.Options{})
		if !errdefs.IsAlreadyExists(err) {
			t.Errorf("Plan = %v, want errdefs.ErrAlreadyExists", err)
		}
		if _, _, err := network.Apply(t.Context(), h, w); !errdefs.IsAlreadyExists(err) {
			t.Errorf("Apply = %v, want errdefs.ErrAlreadyExists", err)
		}
	})
	if err := u.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, snapshot(t, h), settled); d != "" {
		t.Errorf("the namespace after the undo (-before +after):\n%s", d)
	}
}

// echo plays the guest on a tap. It answers ARP with a MAC that only it knows: did the pod's own
// stack, which has the address too, answer as well, the host would have learnt the other one.
func echo(t *testing.T, host string, nic network.NIC) {
	const guestMAC = "02:00:00:00:00:99"
	fd, err := unix.Dup(int(nic.Files[0].Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), "tap")
	defer tap.Close() // a duplicate
	if err := tap.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serveEcho(tap, guestMAC) }()

	var conn net.Conn
	err = netns.In(host, func() (err error) {
		conn, err = net.Dial("udp4", "10.9.0.2:7") // does not block
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("echo = %q, %v (guest: %v)", buf[:n], err, <-served)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	do(t, host, func(h *netlink.Handle) error {
		list, err := h.NeighList(0, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.IP.String() == "10.9.0.2" && n.HardwareAddr.String() != guestMAC {
				return fmt.Errorf("the host learnt %s, want %s: the pod's stack answered too", n.HardwareAddr, guestMAC)
			}
		}
		return nil
	})
}

// serveEcho answers ARP requests and returns after it has echoed one UDP datagram.
func serveEcho(tap *os.File, mac string) error {
	const vnet = 10 // struct virtio_net_hdr, which IFF_VNET_HDR puts before each frame
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := tap.Read(buf)
		if err != nil {
			return err
		}
		if n < vnet+14 {
			return fmt.Errorf("frame of %d bytes", n)
		}
		frame := buf[vnet:n]
		p := frame[14:]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case unix.ETH_P_ARP:
			if p[7] != 1 || !net.IP(p[24:28]).Equal(net.IPv4(10, 9, 0, 2)) {
				continue
			}
			copy(frame[0:6], frame[6:12])
			copy(frame[6:12], hw)
			p[7] = 2
			copy(p[18:28], p[8:18])
			copy(p[8:14], hw)
			copy(p[14:18], []byte{10, 9, 0, 2})
		case unix.ETH_P_IP:
			if p[9] != unix.IPPROTO_UDP || !net.IP(p[16:20]).Equal(net.IPv4(10, 9, 0, 2)) {
				continue
			}
			copy(frame[0:6], frame[6:12])
			copy(frame[6:12], hw)
			udp := p[int(p[0]&15)*4:]
			swap(p[12:16], p[16:20])
			swap(udp[0:2], udp[2:4])
			udp[6], udp[7] = 0, 0 // no checksum; the IP header's is the same after the swap
		default:
			continue
		}
		clear(buf[:vnet])
		if _, err := tap.Write(buf[:n]); err != nil {
			return err
		}
		if binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP {
			return nil
		}
	}
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// faulty makes one call fail before it reaches the kernel.
type faulty struct {
	*network.Handle
	left int
}

var errBoom = errors.New("boom")

func (f *faulty) step() error {
	f.left--
	if f.left == 0 {
		return errBoom
	}
	return nil
}

func (f *faulty) CreateTap(ctx context.Context, name string, queues int) ([]*os.File, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	return f.Handle.CreateTap(ctx, name, queues)
}

func (f *faulty) SetUp(ctx context.Context, tap string, mtu int) error {
	return errors.Join(f.Handle.SetUp(ctx, tap, mtu), f.step()) // fails after its effect
}

func (f *faulty) AddIngress(ctx context.Context, link string) error {
	return errors.Join(f.Handle.AddIngress(ctx, link), f.step())
}

func (f *faulty) Redirect(ctx context.Context, from, to string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Handle.Redirect(ctx, from, to)
}

func TestRealFailuresLeaveNothing(t *testing.T) {
	_, podNS := pod(t)
	h := open(t, podNS)
	before := snapshot(t, h)
	w, err := network.Plan(before, network.Options{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 6; n++ {
		if _, _, err := network.Apply(t.Context(), &faulty{h, n}, w); !errors.Is(err, errBoom) {
			t.Fatalf("step %d: Apply = %v, want %v", n, err, errBoom)
		}
		if d := cmp.Diff(before, snapshot(t, h), settled); d != "" {
			t.Errorf("step %d: the namespace changed (-before +after):\n%s", n, d)
		}
	}
	nics, u, err := network.Apply(t.Context(), h, w)
	if err != nil {
		t.Fatal(err)
	}
	if len(nics[0].Files) != 2 {
		t.Errorf("%d queues, want 2", len(nics[0].Files))
	}
	for range 2 {
		if err := network.Remove(t.Context(), h, w); err != nil {
			t.Error(err)
		}
	}
	if err := u.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(before, snapshot(t, h), settled); d != "" {
		t.Errorf("the namespace after Remove (-before +after):\n%s", d)
	}
}

func TestRealCrashAndForeignIngress(t *testing.T) {
	_, podNS := pod(t)
	h := open(t, podNS)
	before := snapshot(t, h)
	w, err := network.Plan(before, network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	nics, _, err := network.Apply(t.Context(), h, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := nics[0].CloseFiles(); err != nil { // as when shim and VMM are killed
		t.Fatal(err)
	}
	again, err := network.Plan(snapshot(t, h), network.Options{})
	if err != nil || !again.Redirects[0].Stale {
		t.Fatalf("Plan after the crash = %+v, %v, want a stale redirect", again.Redirects, err)
	}
	_, u, err := network.Apply(t.Context(), h, again)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, snapshot(t, h), settled); d != "" {
		t.Errorf("the namespace after the undo (-before +after):\n%s", d)
	}
	do(t, podNS, func(n *netlink.Handle) error {
		l, err := n.LinkByName("eth0")
		if err != nil {
			return err
		}
		return n.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
	})
	if _, err := network.Plan(snapshot(t, h), network.Options{}); !errdefs.IsFailedPrecondition(err) ||
		!strings.Contains(err.Error(), "link eth0") {
		t.Errorf("Plan with a foreign qdisc = %v, want errdefs.ErrFailedPrecondition naming eth0", err)
	}
}

func TestRealHandleLeaksNothing(t *testing.T) {
	_, podNS := pod(t)
	use := func() {
		h, err := network.Open(podNS)
		if err != nil {
			t.Fatal(err)
		}
		snapshot(t, h)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	use()
	fds, threads := openFiles(t), threadCount(t)
	for range 100 {
		use()
	}
	if n := openFiles(t); n > fds { // fewer: a subscription of another test has ended
		t.Errorf("%d descriptors, %d before", n, fds)
	}
	if n := threadCount(t); n > threads+4 {
		t.Errorf("%d threads, %d before", n, threads)
	}
}

func threadCount(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestNetnsLifetime(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns)
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.New(path); err != nil {
		t.Fatal(err)
	}
	if err := netns.New(path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second NewNetns = %v, want errdefs.ErrAlreadyExists", err)
	}
	var links []net.Interface
	if err := netns.In(path, func() (err error) { links, err = net.Interfaces(); return err }); err != nil ||
		len(links) != 1 {
		t.Errorf("links in a new namespace = %v, %v, want lo alone", links, err)
	}
	for range 2 {
		if err := netns.Delete(path); err != nil {
			t.Error(err)
		}
	}
	if err := netns.New(filepath.Join(path, "no", "where")); err == nil {
		t.Error("NewNetns in a missing directory = nil")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := network.Open(file); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Open of a plain file = %v, want errdefs.ErrInvalidArgument", err)
	}
	if err := netns.In("/proc/self/ns/mnt", func() error { return nil }); err == nil {
		t.Error("InNetns of a mount namespace = nil")
	}
}

// A VM gains the interface that came into its namespace, and loses it again.
func TestChangesOfANamespaceAreHeard(t *testing.T) {
	host, podNS := pod(t)
	h := open(t, podNS)
	before := snapshot(t, h)
	w, err := network.Plan(before, network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	nics, u, err := network.Apply(t.Context(), h, w)
	if err != nil {
		t.Fatal(err)
	}
	joints := network.Joints(w, nics)
	watch, err := h.Watch()
	if err != nil {
		t.Fatal(err)
	}
	change := func(ns string, fn func(h *netlink.Handle) error) (network.Snapshot, network.Change) {
		t.Helper()
		do(t, ns, fn)
		if err := watch.Wait(); err != nil {
			t.Fatal(err)
		}
		s := snapshot(t, h)
		return s, network.Compare(s, joints, network.Options{})
	}
	do(t, host, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, PeerName: "peer"})
	})
	_, c := change(host, func(h *netlink.Handle) error { return moveUp(h, podNS, "net1", "10.8.0.2/24") })
	if len(c.Came) != 1 || c.Came[0].Link != "net1" || len(c.Left) != 0 {
		t.Fatalf("after a link came: %+v", c)
	}
	more, mu, err := network.Apply(t.Context(), h, network.Wiring{Redirects: c.Came})
	if err != nil {
		t.Fatal(err)
	}
	joints = append(joints, network.Joints(network.Wiring{Redirects: c.Came}, more)...)
	s, c := change(podNS, func(h *netlink.Handle) error { return configure(h, "net1", "10.8.0.3/24") })
	if len(c.Came)+len(c.Left) != 0 {
		t.Errorf("after an address came: %+v", c)
	}
	if g := network.GuestOf(s, joints).String(); !strings.Contains(g, "10.8.0.2/24 10.8.0.3/24") {
		t.Errorf("guest = %s", g)
	}
	_, c = change(host, func(h *netlink.Handle) error {
		return h.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "peer"}})
	})
	if len(c.Came) != 0 || len(c.Left) != 1 || c.Left[0].Link != "net1" {
		t.Errorf("after the link left: %+v", c)
	}
	if err := errors.Join(mu.Run(t.Context()), u.Run(t.Context()), watch.Close()); err != nil {
		t.Error(err)
	}
	if err := watch.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait() after Close = %v", err)
	}
}

// moveUp moves a link into another namespace, as Docker does, and sets it up there.
func moveUp(h *netlink.Handle, path, name, addr string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := h.LinkSetNsFd(l, int(ns.Fd())); err != nil {
		return err
	}
	return netns.In(path, func() error {
		there, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer there.Close()
		return configure(there, name, addr)
	})
}
