// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/portmux"
)

// plugTimeout bounds what the guest is asked.
const plugTimeout = 20 * time.Second

// standIn is QEMU running the VM that was described to Cloud Hypervisor. Its machine "pc" plugs devices
// into the root bus by ACPI, as Cloud Hypervisor does. There is no vsock where this is needed, so the
// guest's ports are those of its virtio-serial channel.
type standIn struct {
	cmd   *exec.Cmd
	qmp   *qmp.Client
	guest *portmux.Dialer
	files []*os.File // from descriptor 3 on
	asked atomic.Bool
	gone  chan struct{} // closed when it has ended and was reaped

	mu      sync.Mutex
	removed map[string]chan struct{} // guarded by mu
}

// fd adds a file for QEMU and returns its descriptor there.
func (s *standIn) fd(f *os.File) int {
	s.files = append(s.files, f)
	return 2 + len(s.files)
}

// path opens a file as Cloud Hypervisor would, and returns its name for QEMU.
func (s *standIn) path(name string, write bool) (string, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/self/fd/%d", s.fd(f)), nil
}

// startReal runs the VM and serves its vsock socket.
func (v *vmm) startReal() error {
	if err := os.Remove(v.vm.Vsock.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s := &standIn{removed: map[string]chan struct{}{}, gone: make(chan struct{})}
	agent, agentPeer, err := fdpass.Pair("agent", unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	control, controlPeer, err := fdpass.Pair("control", unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	args, err := s.arguments(v, agentPeer, controlPeer)
	if err != nil {
		return err
	}
	s.cmd = exec.Command(v.config.QEMU, args...) // lives as long as the process
	s.cmd.ExtraFiles, s.cmd.Stderr = s.files, os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for _, f := range s.files {
		_ = f.Close() // QEMU has its duplicate
	}
	ctx, cancel := context.WithTimeout(context.Background(), plugTimeout)
	defer cancel()
	if s.qmp, err = qmp.Connect(ctx, control, s.event); err != nil {
		return err
	}
	s.guest = portmux.NewDialer(agent)
	if v.vsock, err = net.Listen("unix", v.vm.Vsock.Socket); err != nil {
		return err
	}
	v.real = s
	id, l := v.vm.Vsock.Id, v.vsock
	go func() {
		_ = s.cmd.Wait() // however it ended
		close(s.gone)
		if s.asked.Load() {
			return
		}
		v.event("vm", "shutdown", nil)
		os.Exit(0)
	}()
	go func() {
		v.event("virtio-device", "activated", map[string]string{"id": id})
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.bridge(c)
		}
	}()
	return nil
}

func (s *standIn) arguments(v *vmm, agent, control *os.File) ([]string, error) {
	c := v.vm
	kernel, err := s.path(c.Payload.Kernel, false)
	if err != nil {
		return nil, err
	}
	initrd, err := s.path(c.Payload.Initramfs, false)
	if err != nil {
		return nil, err
	}
	slot := func(name string) string {
		for i, n := range v.places {
			if n == name {
				return fmt.Sprintf("bus=pci.0,addr=%#x", i)
			}
		}
		return "bus=pci.0"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine",
		"pc,accel=tcg,smm=off,hpet=off,vmport=off", "-cpu", "max,erms=off,fsrm=off",
		"-smp", fmt.Sprint(c.Cpus.BootVcpus), "-m", fmt.Sprintf("%dM", c.Memory.Size>>20),
		"-kernel", kernel, "-initrd", initrd, "-append", c.Payload.Cmdline,
		"-chardev", "file,id=console,path=" + c.Serial.File, "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d", s.fd(control)), "-mon", "chardev=control,mode=control",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", s.fd(agent)),
		"-device", "virtio-serial-pci,id=serial0,max_ports=2," + slot(c.Vsock.Id),
		"-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,name=" + contract.SerialPort,
	}
	for _, d := range c.Disks {
		path, err := s.path(d.Path, !d.Readonly)
		if err != nil {
			return nil, err
		}
		node, err := json.Marshal(blockNode(d, path))
		if err != nil {
			return nil, err
		}
		args = append(args, "-blockdev", string(node), "-device", fmt.Sprintf("virtio-blk-pci,id=%s,drive=n-%s,serial=%s,%s",
			d.Id, d.Id, d.Serial, slot(d.Id)))
	}
	for _, n := range v.nets {
		var fds []string
		for _, f := range v.taps[n.Id] {
			fds = append(fds, fmt.Sprint(s.fd(f)))
		}
		args = append(args, "-netdev", fmt.Sprintf("tap,id=n-%s,fds=%s,vhost=off", n.Id, strings.Join(fds, ":")),
			"-device", fmt.Sprintf("virtio-net-pci,id=%s,netdev=n-%s,mac=%s,romfile=,%s", n.Id, n.Id, n.Mac, slot(n.Id)))
	}
	return args, nil
}

func blockNode(d clhapi.DiskConfig, path string) map[string]any {
	return map[string]any{
		"driver": "raw", "node-name": "n-" + d.Id, "read-only": d.Readonly,
		"file": map[string]any{"driver": "file", "filename": path, "locking": "off", "read-only": d.Readonly},
	}
}

// bridge connects one connection of the host with the port that it asks for.
func (s *standIn) bridge(host net.Conn) {
	defer host.Close()
	r := bufio.NewReader(host)
	var port uint32
	if _, err := fmt.Fscanf(r, "CONNECT %d\n", &port); err != nil {
		return
	}
	guest, err := s.guest.Dial(context.Background(), port)
	if err != nil {
		return
	}
	defer guest.Close()
	if _, err := io.WriteString(host, "OK 1073741824\n"); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { forward(guest, r) })
	both.Go(func() { forward(host, guest) })
	both.Wait()
}

// forward copies one direction and passes its end on.
func forward(to io.Writer, from io.Reader) {
	_, err := io.Copy(to, from)
	if w, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite() // the other side may be gone
		return
	}
	if c, ok := to.(io.Closer); ok {
		_ = c.Close() // likewise
	}
}

func (s *standIn) event(e qmp.Event) {
	var data struct {
		Device string `json:"device"`
	}
	if e.Name != "DEVICE_DELETED" || json.Unmarshal(e.Data, &data) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch := s.removed[data.Device]; ch != nil {
		close(ch)
		delete(s.removed, data.Device)
	}
}

// plug attaches a disk or an interface in a slot of the root bus.
func (s *standIn) plug(name string, slot int, c *clhapi.VmConfig, taps []*os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), plugTimeout)
	defer cancel()
	dev := map[string]any{"id": name, "bus": "pci.0", "addr": fmt.Sprintf("%#x", slot)}
	if len(taps) > 0 {
		return errors.New("the stand-in takes no interfaces while it runs")
	}
	for _, d := range c.Disks {
		if d.Id != name {
			continue
		}
		if err := s.qmp.Call(ctx, "blockdev-add", blockNode(d, d.Path), nil); err != nil {
			return err
		}
		dev["driver"], dev["drive"], dev["serial"] = "virtio-blk-pci", "n-"+name, d.Serial
		return s.qmp.Call(ctx, "device_add", dev, nil)
	}
	return fmt.Errorf("the stand-in has no device %s", name)
}

// unplug asks the guest for a device and waits until it has let go of it.
func (s *standIn) unplug(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), plugTimeout)
	defer cancel()
	gone := make(chan struct{})
	s.mu.Lock()
	s.removed[name] = gone
	s.mu.Unlock()
	if err := s.qmp.Call(ctx, "device_del", map[string]any{"id": name}, nil); err != nil {
		return err
	}
	select {
	case <-gone:
		return s.qmp.Call(ctx, "blockdev-del", map[string]any{"node-name": "n-" + name}, nil)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end kills the VM, and waits until nothing of it is left in the pod's cgroups.
func (s *standIn) end() {
	s.asked.Store(true)
	_ = s.cmd.Process.Kill() // it may be gone
	<-s.gone
}
