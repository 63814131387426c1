// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package network_test joins a real VM with a pod's network namespace: package network on the host,
// the agent of this work tree in the guest, and a peer that talks to it in both address families.
package network_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
)

const deadline = 90 * time.Second

func TestPodNetworkReachesTheGuest(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap, testvm.QEMU, testvm.GuestImage)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	host, pod := namespaces(t)
	h, err := network.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s, err := h.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w, err := network.Plan(s, network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	nics, u, err := network.Apply(ctx, h, w)
	if err != nil {
		t.Fatal(err)
	}
	agent := boot(ctx, t, nics)
	start := time.Now()
	for _, i := range w.Guest.Interfaces {
		got, err := agent.UpdateInterface(ctx, &pb.UpdateInterfaceRequest{Interface: i})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(i.IPAddresses, got.IPAddresses, protocmp.Transform()); d != "" {
			t.Errorf("addresses of %s in the guest (-want +got):\n%s", i.Name, d)
		}
	}
	if _, err := agent.UpdateRoutes(ctx, &pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: w.Guest.Routes}}); err != nil {
		t.Fatal(err)
	}
	neigh := &pb.ARPNeighbors{ARPNeighbors: w.Guest.Neighbours}
	if _, err := agent.AddARPNeighbors(ctx, &pb.AddARPNeighborsRequest{Neighbors: neigh}); err != nil {
		t.Fatal(err)
	}
	t.Logf("guest configured in %v: %s", time.Since(start).Round(time.Millisecond), w.Guest)

	// The guest's kernel refuses a datagram to a port on which nobody listens: there and back.
	for _, to := range []string{"10.9.0.2", "fd09::2", "10.8.0.2"} {
		for _, size := range []int{1, 1300} {
			if err := refused(ctx, host, to, size); err != nil {
				t.Errorf("%d bytes to %s: %v", size, to, err)
			}
		}
	}
	for _, n := range nics { // from here on the VMM alone holds the taps
		if err := n.CloseFiles(); err != nil {
			t.Error(err)
		}
	}
	if err := refused(ctx, host, "10.9.0.2", 100); err != nil {
		t.Errorf("after the shim closed its descriptors: %v", err)
	}
	if err := u.Run(ctx); err != nil {
		t.Error(err)
	}
	if after, err := h.Snapshot(ctx); err != nil || len(after.Links) != len(s.Links) {
		t.Errorf("links after the undo, with the VMM still alive = %v, %v", after.Links, err)
	}
}

// refused sends a datagram and waits for the port's refusal.
func refused(ctx context.Context, ns, to string, size int) error {
	var conn net.Conn
	err := netns.In(ns, func() (err error) {
		conn, err = net.Dial("udp", net.JoinHostPort(to, "9")) // does not block
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := conn.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("answer %w, want %w", err, unix.ECONNREFUSED)
	}
	return nil
}

// namespaces makes a host and a pod with two interfaces between them.
func namespaces(t *testing.T) (host, pod string) {
	t.Helper()
	dir := t.TempDir()
	host, pod = filepath.Join(dir, "host"), filepath.Join(dir, "pod")
	for _, p := range []string{host, pod} {
		if err := netns.New(p); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(p); err != nil {
				t.Error(err)
			}
		})
	}
	run(t, host, pod, "ip link add v0 mtu 1400 type veth peer name eth0 netns POD address 02:09:00:00:00:02 mtu 1400")
	run(t, host, pod, "ip link add v1 type veth peer name net1 netns POD address 02:08:00:00:00:02")
	run(t, host, pod, "ip link set v0 up", "ip addr add 10.9.0.1/24 dev v0", "ip addr add fd09::1/64 dev v0 nodad",
		"ip link set v1 up", "ip addr add 10.8.0.1/24 dev v1")
	run(t, pod, pod, "ip link set lo up", "ip link set eth0 up", "ip link set net1 up",
		"ip addr add 10.9.0.2/24 dev eth0", "ip addr add fd09::2/64 dev eth0 nodad", "ip addr add 10.8.0.2/24 dev net1",
		"ip route add default via 10.9.0.1", "ip route add 10.7.0.0/16 via 10.8.0.1 mtu 1280",
		"ip neigh add 10.9.0.7 lladdr 02:09:00:00:00:07 dev eth0 nud permanent")
	return host, pod
}

// run executes commands in a namespace; POD stands for a descriptor path of the pod's.
func run(t *testing.T, ns, pod string, cmds ...string) {
	t.Helper()
	err := netns.In(ns, func() error {
		for _, c := range cmds {
			words := strings.Fields(c)
			for i, w := range words {
				if w == "POD" {
					words[i] = pod
				}
			}
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", c, err, out)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// boot starts a VM with the interfaces and returns its agent.
func boot(ctx context.Context, t *testing.T, nics []network.NIC) pb.AgentServiceService {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel")
	channel, err := net.FileConn(mine)
	if err := errors.Join(err, mine.Close()); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", filepath.Join(testvm.GuestDir(), "vmlinux"), "-initrd", initrd(t),
		"-append", "console=ttyS0 quiet panic=-1 reboot=t scsi_mod.scan=none cgroup_no_v1=all",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=3",
		"-device", "virtserialport,chardev=agent,name=" + contract.SerialPort,
	}
	files := []*os.File{theirs}
	for i := len(nics) - 1; i >= 0; i-- { // in reverse: the agent must not count on the kernel's numbers
		n := nics[i]
		files = append(files, n.Files[0])
		args = append(args, "-netdev", fmt.Sprintf("tap,id=n%d,fd=%d", i, 2+len(files)),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s,host_mtu=%d,romfile=", i, n.MAC, n.MTU))
	}
	var console bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", args...) // killed below
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, &console, &console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait(); _ = channel.Close() }()
	dialer := portmux.NewDialer(channel)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		_ = dialer.Close()
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	})
	conn, err := dialer.Dial(ctx, contract.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = client.Close() })
	if _, err := pb.NewHealthClient(client).Check(ctx, &pb.CheckRequest{}); err != nil {
		t.Fatal(err)
	}
	return pb.NewAgentServiceClient(client)
}

// initrd is the guest image's with this work tree's agent: the kernel unpacks archives one after the
// other, and later files replace earlier ones.
func initrd(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "coco-agent")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-tags", "no_grpc", "-o",
		bin, "./cmd/coco-agent")
	build.Dir, build.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build coco-agent: %v\n%s", err, out)
	}
	base, err := os.ReadFile(filepath.Join(testvm.GuestDir(), "initrd.img"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.NewBuffer(base)
	align := func() { buf.Write(make([]byte, -buf.Len()&3)) }
	for _, e := range []struct {
		name string
		mode int
		data []byte
	}{{"init", 0o100755, agent}, {"TRAILER!!!", 0, nil}} {
		align()
		fmt.Fprintf(buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			0, e.mode, 0, 0, 1, 0, len(e.data), 0, 0, 0, 0, len(e.name)+1, 0, e.name)
		align()
		buf.Write(e.data)
	}
	align()
	name := filepath.Join(dir, "initrd.img")
	if err := os.WriteFile(name, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
