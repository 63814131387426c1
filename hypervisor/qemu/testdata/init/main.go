// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command init is the first process of the VMs that the driver's tests boot. It serves the
// agent channel: port 1024 echoes, 1026 takes and counts, 1027 gives zeros, and 1025 obeys one
// line per connection.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("test init:", err)
	}
	time.Sleep(24 * time.Hour) // the host ends us; select {} would be a deadlock to the runtime
}

func run() error {
	for dir, fs := range map[string]string{"/dev": "devtmpfs", "/sys": "sysfs", "/proc": "proc"} {
		_ = os.MkdirAll(dir, 0o755)
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(cmdline), "test.silent") {
		fmt.Println("test init: I do not open the channel")
		return nil
	}
	if strings.Contains(string(cmdline), "test.exit") {
		os.Exit(3)
	}
	port, err := os.OpenFile("/dev/vport0p1", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if strings.Contains(string(cmdline), "test.raw") {
		return raw(channel{port})
	}
	mux := portmux.NewMux(channel{port})
	for p, fn := range map[uint32]func(net.Conn){1024: echo, 1025: obey, 1026: take, 1027: give} {
		l, err := mux.Listen(p)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); fn(c) }()
			}
		}()
	}
	return mux.Serve()
}

// channel waits while the host is not connected yet, when a read returns nothing.
type channel struct{ *os.File }

func (c channel) Read(p []byte) (int, error) {
	for {
		n, err := c.File.Read(p)
		if err != io.EOF {
			return n, err
		}
		time.Sleep(time.Millisecond)
	}
}

// raw measures the bare channel: after one byte from the host it takes 64 MiB, answers one byte,
// and gives 64 MiB.
func raw(c channel) error {
	const size = 64 << 20
	if _, err := io.CopyN(io.Discard, c, 1+size); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for n := 0; n < size; n += len(buf) {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func take(c net.Conn) {
	n, err := io.Copy(io.Discard, c)
	fmt.Fprintln(c, n, err)
}

func give(c net.Conn) {
	line, _ := bufio.NewReader(c).ReadString('\n')
	n, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	zeros := make([]byte, 64<<10)
	for n > 0 {
		m, err := c.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return
		}
		n -= int64(m)
	}
}

func obey(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	f := strings.Fields(line)
	start := time.Now()
	out, err := command(f)
	fmt.Fprintf(c, "%d %s %v\n", time.Since(start).Microseconds(), out, err)
}

func command(f []string) (string, error) {
	switch f[0] {
	case "panic":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "off":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "restart":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "load": // all modules in the image's list
		return "", loadAll()
	case "scsi": // target:lun
		t, l, _ := strings.Cut(f[1], ":")
		if err := os.WriteFile("/sys/class/scsi_host/host0/scan", []byte("0 "+t+" "+l), 0); err != nil {
			return "", err
		}
		return digest("/sys/bus/scsi/devices/0:0:" + t + ":" + l + "/block/*")
	case "blk": // pci path
		b, d, _ := strings.Cut(f[1], "/")
		return digest("/sys/bus/pci/devices/0000:00:" + b + ".0/0000:*:" + d + ".0/virtio*/block/*")
	case "net":
		b, d, _ := strings.Cut(f[1], "/")
		return await("/sys/bus/pci/devices/0000:00:" + b + ".0/0000:*:" + d + ".0/virtio*/net/*")
	case "gone":
		return "", vanish("/sys/class/" + f[1])
	}
	return "", fmt.Errorf("unknown command")
}

func loadAll() error {
	list, err := os.ReadFile(contract.ModulesFile)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if line == "# report\n" { // what follows is for TEEs and for containers
			break
		}
		if len(f) < 2 || f[0] == "#" {
			continue
		}
		m, err := os.Open(f[1])
		if err != nil {
			return err
		}
		flags := 0
		if strings.HasSuffix(f[1], ".xz") {
			flags = 4 // MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(m.Fd()), "", flags)
		_ = m.Close()
		if err != nil && err != unix.EEXIST {
			fmt.Println("test init: module", f[0], err)
		}
	}
	return nil
}

// await waits for the one path of a pattern.
func await(pattern string) (string, error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if all, _ := filepath.Glob(pattern); len(all) == 1 {
			return filepath.Base(all[0]), nil
		}
	}
	return "", fmt.Errorf("nothing at %s", pattern)
}

func digest(pattern string) (string, error) {
	name, err := await(pattern)
	if err != nil {
		return "", err
	}
	var f *os.File
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if f, err = os.Open("/dev/" + name); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 4096)
	if _, err := io.ReadFull(f, b); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %x", name, sha256.Sum256(b)), nil
}

func vanish(path string) error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return nil
		}
	}
	return fmt.Errorf("%s is still there", path)
}
