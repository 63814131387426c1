// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent_test boots a VM with the agent of this work tree as its /init and drives it over
// the virtio-serial channel, as the shim would, but without any host code beside the channel's.
package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
	"github.com/coco-shim/coco/internal/testvm"
)

const bootDeadline = 60 * time.Second

// vm is a running guest.
type vm struct {
	cmd     *exec.Cmd
	exited  chan error
	console *bytes.Buffer
	dialer  *portmux.Dialer
	client  *ttrpc.Client
	agent   pb.AgentServiceService
	health  pb.HealthService
	streams atomic.Uint32
}

// buildInitrd appends this work tree's agent to the image's initramfs: the kernel unpacks archives
// one after the other, and later files replace earlier ones.
func buildInitrd(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "coco-agent")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-tags", "no_grpc", "-o",
		bin, "./cmd/coco-agent")
	build.Dir = testvm.RepoRoot()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
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
	var buf bytes.Buffer
	buf.Write(base)
	for buf.Len()%4 != 0 {
		buf.WriteByte(0)
	}
	writeCpio(&buf, "init", 0o100755, agent)
	writeCpio(&buf, "TRAILER!!!", 0, nil)
	name := filepath.Join(dir, "initrd.img")
	if err := os.WriteFile(name, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeCpio writes one entry of a "newc" archive; kernel, Documentation/driver-api/early-userspace/buffer-format.rst.
func writeCpio(w *bytes.Buffer, name string, mode uint32, data []byte) {
	start := w.Len()
	fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	pad := func() {
		for (w.Len()-start)%4 != 0 {
			w.WriteByte(0)
		}
	}
	w.WriteString(name)
	w.WriteByte(0)
	pad()
	w.Write(data)
	pad()
}

// boot starts a VM on a channel that is connected from the start, with further arguments for QEMU,
// and waits until the agent answers.
func boot(t *testing.T, initrd string, devices ...string) *vm {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "channel")
	defer theirs.Close()
	mine := os.NewFile(uintptr(fds[0]), "channel")
	channel, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	v := launch(t, initrd, "fd=3", []*os.File{theirs}, devices...)
	v.connect(t, channel)
	t.Logf("agent answers %v after exec of QEMU", time.Since(start).Round(time.Millisecond))
	return v
}

// launch starts QEMU with a channel.
func launch(t *testing.T, initrd, channel string, files []*os.File, devices ...string) *vm {
	t.Helper()
	v := &vm{console: &bytes.Buffer{}, exited: make(chan error, 1)}
	v.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max",
		"-m", "512", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(testvm.GuestDir(), "vmlinux"), "-initrd", initrd,
		"-append", contract.Cmdline+" "+contract.ParamLog+"="+os.Getenv("COCO_AGENT_LOG"),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,"+channel,
		"-device", "virtserialport,chardev=agent,name="+contract.SerialPort,
		"-device", "virtio-rng-pci")
	v.cmd.Args = append(v.cmd.Args, devices...)
	// For measuring on a busy machine: -icount shift=0,sleep=off counts instructions, not time.
	v.cmd.Args = append(v.cmd.Args, strings.Fields(os.Getenv("COCO_TEST_QEMU_ARGS"))...)
	v.cmd.ExtraFiles = files
	v.cmd.Stdout, v.cmd.Stderr = v.console, v.console
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { v.exited <- v.cmd.Wait() }()
	t.Cleanup(func() { v.stop(t) })
	return v
}

// connect begins a session on a channel; the channel ends with the VM.
func (v *vm) connect(t *testing.T, channel net.Conn) {
	t.Helper()
	if err := v.session(t, channel, bootDeadline); err != nil {
		t.Fatalf("%v\n%s", err, v.log())
	}
}

func (v *vm) session(t *testing.T, channel net.Conn, limit time.Duration) error {
	t.Helper()
	v.dialer = portmux.NewDialer(channel)
	conn, err := v.dialer.Dial(within(t, limit), contract.PortAgent)
	if err != nil {
		return fmt.Errorf("dial agent: %w", err)
	}
	v.client = ttrpc.NewClient(conn)
	v.agent, v.health = pb.NewAgentServiceClient(v.client), pb.NewHealthClient(v.client)
	if _, err := v.health.Check(within(t, limit), &pb.CheckRequest{}); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}

func (v *vm) disconnect() {
	if v.client != nil {
		v.client.Close()
	}
	if v.dialer != nil {
		v.dialer.Close()
	}
}

func (v *vm) stop(t *testing.T) {
	_ = v.cmd.Process.Kill()
	err := <-v.exited
	v.exited <- err
	v.disconnect()
	if t.Failed() {
		t.Logf("console:\n%s", v.log())
	}
}

// log is the console so far; only meaningful after the VM has ended.
func (v *vm) log() string {
	_ = v.cmd.Process.Kill()
	err := <-v.exited
	v.exited <- err
	return v.console.String()
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// stream opens a byte stream and returns its number.
func (v *vm) stream(t *testing.T) (uint32, net.Conn) {
	t.Helper()
	n := v.streams.Add(1)
	c, err := v.dialer.Dial(within(t, 10*time.Second), contract.PortStreams)
	if err != nil {
		t.Fatalf("dial streams: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, contract.StreamWord+" %d\n", n)
	got := make([]byte, 3)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "ok\n" {
		t.Fatalf("greeting: %q, %v", got, err)
	}
	return n, c
}

// copyIn copies a file of the host into the guest.
func (v *vm) copyIn(t *testing.T, src, dst string) {
	t.Helper()
	data, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	const piece = 1 << 20
	for off := 0; ; off += piece {
		_, err := v.agent.CopyFile(within(t, 20*time.Second), &pb.CopyFileRequest{
			Path: dst, FileSize: int64(len(data)), FileMode: unix.S_IFREG | 0o755, DirMode: 0o755,
			Offset: int64(off), Data: data[off:min(off+piece, len(data))],
		})
		if err != nil {
			t.Fatalf("CopyFile: %v", err)
		}
		if off+piece >= len(data) {
			return
		}
	}
}

const (
	shared = contract.FilesDir + "/"
	rootfs = shared + "busybox"
)

// busybox installs a root file system of one binary and links to it.
func (v *vm) busybox(t *testing.T) {
	t.Helper()
	testvm.Need(t, testvm.Busybox)
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	v.copyIn(t, path, rootfs+"/bin/busybox")
	for _, name := range strings.Fields("sh true false cat sleep echo stty env id dd md5sum ls head kill mount hostname " +
		"ps sync wc tty test") {
		_, err := v.agent.CopyFile(within(t, 20*time.Second), &pb.CopyFileRequest{
			Path: rootfs + "/bin/" + name, FileMode: unix.S_IFLNK | 0o777, DirMode: 0o755, Data: []byte("busybox"),
		})
		if err != nil {
			t.Fatalf("CopyFile link: %v", err)
		}
	}
}

// spec is what a host would send, after its own clean-up.
func spec(args ...string) *pb.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_NET_RAW"}
	return &pb.Spec{
		Version: "1.1.0",
		Process: &pb.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "TERM=xterm"}, User: &pb.User{}, NoNewPrivileges: true,
			Capabilities: &pb.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root: &pb.Root{Path: rootfs},
		Mounts: []*pb.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{
				"nosuid", "strictatime", "mode=755",
				"size=65536k",
			}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{
				"nosuid", "noexec", "newinstance",
				"ptmxmode=0666", "mode=0620",
			}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{
				Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
				Options: []string{"nosuid", "noexec", "nodev", "ro"},
			},
		},
		Linux: &pb.Linux{
			Namespaces: []*pb.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
			Resources:  &pb.LinuxResources{},
		},
	}
}

// streams is one process's connections.
type streams struct {
	in       net.Conn
	out, err net.Conn
	ports    [3]uint32
}

func (v *vm) open(t *testing.T) streams {
	t.Helper()
	var s streams
	s.ports[0], s.in = v.stream(t)
	s.ports[1], s.out = v.stream(t)
	s.ports[2], s.err = v.stream(t)
	return s
}

// create makes a container with streams.
func (v *vm) create(t *testing.T, id string, spec *pb.Spec) streams {
	t.Helper()
	s := v.open(t)
	if _, err := v.agent.CreateContainer(within(t, 30*time.Second), &pb.CreateContainerRequest{
		ContainerId: id, OCI: spec, StdinPort: s.ports[0], StdoutPort: s.ports[1], StderrPort: s.ports[2],
	}); err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	return s
}

func (v *vm) start(t *testing.T, id string) {
	t.Helper()
	if _, err := v.agent.StartContainer(within(t, 30*time.Second),
		&pb.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
}

func (v *vm) wait(t *testing.T, id, exec string) int32 {
	t.Helper()
	r, err := v.agent.WaitProcess(within(t, 30*time.Second), &pb.WaitProcessRequest{ContainerId: id, ExecId: exec})
	if err != nil {
		t.Fatalf("WaitProcess: %v", err)
	}
	return r.Status
}

func (v *vm) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := v.agent.RemoveContainer(within(t, 30*time.Second),
		&pb.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("RemoveContainer: %v", err)
	}
}

func closeWrite(c net.Conn) error {
	cw, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("connection cannot half-close")
	}
	return cw.CloseWrite()
}
