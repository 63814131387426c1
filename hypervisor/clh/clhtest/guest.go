// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"github.com/coco-shim/coco/api/contract"
)

// startGuest opens the vsock device and plays a guest.
func (v *vmm) startGuest() error {
	var err error
	if v.vsock, err = net.Listen("unix", v.vm.Vsock.Socket); err != nil {
		return err
	}
	var delay time.Duration
	if v.config.GuestDelay != "" {
		if delay, err = time.ParseDuration(v.config.GuestDelay); err != nil {
			return err
		}
	}
	id, l := v.vm.Vsock.Id, v.vsock
	v.print(v.config.GuestSays)
	fmt.Fprint(os.Stderr, v.config.Logs)
	switch v.config.GuestEnds {
	case "off":
		time.AfterFunc(delay, func() { v.event("vm", "shutdown", nil); v.quit() })
		return nil
	case "reset":
		time.AfterFunc(delay, func() { v.reboot(id) })
		return nil
	case "vcpu":
		time.AfterFunc(delay, v.processorFails)
		return nil
	case "panic":
		time.AfterFunc(delay, func() {
			if v.vm.Pvpanic {
				v.event("guest", "panic", map[string]string{"event": "panic"})
			}
			v.reboot(id)
		})
		return nil
	}
	if v.config.GuestNever {
		return nil
	}
	time.AfterFunc(delay, func() {
		v.event("virtio-device", "activated", map[string]string{"id": id})
		v.listen(l)
	})
	return nil
}

// rebootTime is what the real VMM needs to boot a VM again.
const rebootTime = 9 * time.Millisecond

// reboot boots the VM again, which nobody asked for. This time the guest has its driver up, and no agent.
func (v *vmm) reboot(id string) {
	v.event("vm", "rebooting", nil)
	time.AfterFunc(rebootTime, func() {
		v.event("vm", "rebooted", nil)
		v.event("virtio-device", "activated", map[string]string{"id": id})
	})
}

// processorFails is the VMM's end when a virtual processor cannot go on: as if the guest had switched
// itself off, save for a line of the log.
func (v *vmm) processorFails() {
	fmt.Fprintln(os.Stderr, "cloud-hypervisor: 0.2s: <vcpu0> ERROR:vmm/src/cpu.rs:1487 -- VCPU generated error: "+
		"VcpuRun(Failed to run vcpu\n\nCaused by:\n    Unhandled exit)")
	v.event("vm", "shutdown", nil)
	v.quit()
}

func (v *vmm) print(s string) {
	if v.console != nil && s != "" {
		_, _ = io.WriteString(v.console, s) // a fake
	}
}

// listen accepts connections of the host. Their bytes wait until the guest's driver is up.
func (v *vmm) listen(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go v.connection(c)
	}
}

// connection is "CONNECT port", then an echo on ports that listen. The guest greets first, to see that
// the host reads no more than the VMM's answer.
func (v *vmm) connection(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	var port int
	if _, err := fmt.Fscanf(r, "CONNECT %d\n", &port); err != nil {
		return
	}
	ports := v.config.GuestPorts
	if ports == nil {
		ports = []int{contract.PortAgent}
	}
	if !slices.Contains(ports, port) {
		return
	}
	reply := "OK 1073741824\n"
	if v.config.BadOK {
		reply = "YES 1\n"
	}
	if _, err := io.WriteString(c, reply+Greeting); err != nil {
		return
	}
	_, _ = io.Copy(c, r) // until the host closes
}

// Greeting is what the guest says on each connection before it echoes.
const Greeting = "hello\n"

func (v *vmm) shutdown() answer {
	if !v.running {
		return v.refused(internal, "The VM could not shutdown", "VM is not running")
	}
	v.stop()
	v.event("vm", "shutdown", nil)
	return done
}

// stop ends the VM; its description stays.
func (v *vmm) stop() {
	v.running = false
	for name := range v.locks {
		v.unlock(name)
	}
	_ = v.vsock.Close() // a fake; removes the socket
	if v.real != nil {
		v.real.end()
	}
	v.places = [slots]string{}
}

// remove forgets the VM.
func (v *vmm) remove() answer {
	if v.vm == nil {
		return done
	}
	if v.running {
		v.shutdown()
	}
	if v.console != nil {
		_ = v.console.Close() // a fake
	}
	for id, taps := range v.taps {
		for _, f := range taps {
			_ = f.Close() // a fake
		}
		delete(v.taps, id)
	}
	v.vm, v.nets, v.console, v.failed = nil, nil, nil, false
	for name := range v.locks {
		v.unlock(name)
	}
	v.event("vm", "deleted", nil)
	return done
}

// quit ends the process in order.
func (v *vmm) quit() {
	if v.vm != nil {
		if err := os.Remove(v.vm.Vsock.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fatal(err)
		}
	}
	os.Exit(0)
}
