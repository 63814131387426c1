// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package qtest reads the tables that a QEMU would give to its guest's firmware, from a QEMU that runs no guest.
// It starts the process, makes over the qtest protocol the accesses that firmware makes before it reads ACPI
// tables, and reads files of fw_cfg. Command lines come from package qemu (Tables). It does not interpret the tables.
package qtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
)

// timeout bounds a whole conversation, which takes some 0.1 s.
const timeout = 15 * time.Second

// Bounds on a QEMU's answers.
const (
	maxFiles = 4096
	maxFile  = 16 << 20
	maxLine  = maxFile/3*4 + 64
)

// Files of fw_cfg that are measured.
const (
	Loader       = "etc/table-loader"
	RSDP         = "etc/acpi/rsdp"
	ACPI         = "etc/acpi/tables"
	SMBIOS       = "etc/smbios/smbios-tables"
	SMBIOSAnchor = "etc/smbios/smbios-anchor"
)

// Read starts a command line of qemu.Tables, as descriptor 3 of which it gives the socket, and returns the files of
// fw_cfg with the given names. Those that do not exist are absent in the result.
func Read(ctx context.Context, argv []string, f Firmware, names ...string) (map[string][]byte, error) {
	files, _, err := run(ctx, argv, f, names)
	return files, err
}

// run is Read; itself says that argv[0] is the program that answered.
func run(ctx context.Context, argv []string, f Firmware, names []string) (files map[string][]byte,
	itself bool, err error,
) {
	files, itself, err = read(ctx, argv, f, names)
	if err != nil {
		return nil, false, fmt.Errorf("read tables of %s: %w", argv[0], err)
	}
	return files, itself, nil
}

func read(ctx context.Context, argv []string, f Firmware, names []string) (_ map[string][]byte,
	itself bool, err error,
) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errors.New("no answer within "+timeout.String()))
	defer cancel()
	conn, peer, err := fdpass.Pair("qtest", unix.SOCK_STREAM)
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{peer}, &stderr
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C"}
	err = cmd.Start()
	_ = peer.Close() // QEMU has its duplicate
	if err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	files, err := newClient(conn).files(f, names)
	itself = runs(cmd.Process.Pid, argv[0])
	_ = cmd.Process.Kill() // it holds nothing
	_ = cmd.Wait()         // killed
	if err == nil {
		return files, itself, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if s := strings.TrimSpace(stderr.String()); s != "" {
		err = fmt.Errorf("%w; it says: %s", err, s)
	}
	return nil, false, err
}

// runs reports whether a process executes the file itself, not a program that the file (a script) started.
func runs(pid int, path string) bool {
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	st, err := os.Stat(path)
	return err == nil && os.SameFile(exe, st)
}

// client speaks the protocol: a line each way. Errors stick.
type client struct {
	w   io.Writer
	r   *bufio.Scanner
	err error
}

func newClient(c io.ReadWriter) *client {
	r := bufio.NewScanner(c)
	r.Buffer(make([]byte, 0, 64<<10), maxLine)
	return &client{w: c, r: r}
}

// call sends a command and returns the text after "OK".
func (c *client) call(format string, args ...any) string {
	if c.err != nil {
		return ""
	}
	command := fmt.Sprintf(format, args...)
	if _, c.err = c.w.Write([]byte(command + "\n")); c.err != nil {
		return ""
	}
	for c.r.Scan() {
		answer := c.r.Text()
		if strings.HasPrefix(answer, "IRQ ") {
			continue
		}
		rest, ok := strings.CutPrefix(answer, "OK")
		if !ok {
			c.err = fmt.Errorf("qtest command %.40q: answer %.80q", command, answer)
		}
		return strings.TrimSpace(rest)
	}
	if c.err = c.r.Err(); c.err == nil {
		c.err = errors.New("QEMU ended the conversation")
	}
	return ""
}

// config writes 32 bits of PCI configuration space.
func (c *client) config(slot, offset, value uint32) {
	c.call("outl 0xcf8 %#x", 1<<31|slot<<11|offset)
	c.call("outl 0xcfc %#x", value)
}

// Firmware has a firmware's changes to the machine before it reads the tables, as far as the tables depend on them.
type Firmware struct {
	// PCIExBar is the address of PCI's configuration space.
	PCIExBar uint32
	// MMIO64 is where the window for 64-bit BARs of PCI devices begins; 0: there is none.
	MMIO64 uint64
}

// OVMF returns the changes that a release of edk2's OvmfPkg, such as 202508, makes in a VM with the given number of
// physical address bits. The window takes the upper eighth of the address space, of which more than 46 bits are not
// used with 4-level paging (PlatformAddressWidthFromCpuid and PlatformDynamicMmioWindow in
// OvmfPkg/Library/PlatformInitLib). With 5-level paging a guest may have, and use, up to 52.
func OVMF(release, physBits int) Firmware {
	f := Firmware{PCIExBar: 0xe0000000, MMIO64: 1<<physBits - 1<<(physBits-3)}
	if release < 202305 { // 82c1aa87f9
		f.PCIExBar = 0xb0000000
	}
	return f
}

// Places of q35's own devices.
const (
	hostBridge = 0
	lpc        = 0x1f
)

// prepare plays the firmware.
func (c *client) prepare(f Firmware) {
	const pmBase = 0x600
	c.config(hostBridge, 0x64, 0)
	c.config(hostBridge, 0x60, f.PCIExBar|1)
	c.config(lpc, 0x40, pmBase|1)
	c.config(lpc, 0x44, 0x80) // ACPI enable
	if f.MMIO64 != 0 {
		c.place(f.MMIO64)
	}
}

// place maps the first 64-bit BAR at the start of the window. That start is all that the tables show of
// the BARs, as long as they take less than 32 GiB.
func (c *client) place(at uint64) {
	const (
		command, memory = 0x04, 2
		bar4            = 0x20 // where virtio devices have it
		prefetch64      = 0xc
	)
	for slot := uint32(1); slot < lpc && c.err == nil; slot++ {
		c.call("outl 0xcf8 %#x", 1<<31|slot<<11|bar4)
		v, err := strconv.ParseUint(c.call("inl 0xcfc"), 0, 32)
		if c.err == nil && err != nil {
			c.err = fmt.Errorf("PCI slot %d: %w", slot, err)
		}
		if v&0xf != prefetch64 {
			continue
		}
		c.config(slot, bar4, uint32(at)) // the lower half
		c.config(slot, bar4+4, uint32(at>>32))
		c.config(slot, command, memory)
		return
	}
}

// Addresses in the guest's memory, which nobody else uses.
const (
	descriptorAt = 0x1000
	dataAt       = 1 << 20
)

// Bits of a transfer's control word (QEMU docs/specs/fw_cfg.rst).
const (
	dmaRead   = 2
	dmaSelect = 8
)

// transfer reads bytes of the selected item, after it was selected if key is not negative.
func (c *client) transfer(key, size int) []byte {
	control := uint32(dmaRead)
	if key >= 0 {
		control |= dmaSelect | uint32(key)<<16 // 16 bits
	}
	var d []byte
	d = binary.BigEndian.AppendUint32(d, control)
	d = binary.BigEndian.AppendUint32(d, uint32(size)) // at most maxFile
	d = binary.BigEndian.AppendUint64(d, dataAt)
	c.call("write %#x %#x 0x%x", descriptorAt, len(d), d)
	c.call("outl 0x514 0")
	c.call("outl 0x518 %#x", bits.ReverseBytes32(descriptorAt))
	state := c.memory(descriptorAt, 4)
	if c.err == nil && !bytes.Equal(state, make([]byte, 4)) {
		c.err = fmt.Errorf("fw_cfg transfer ends with %x", state) // bit 0 is an error, others: it never ended
	}
	return c.memory(dataAt, size)
}

// memory reads the guest's memory.
func (c *client) memory(at, size int) []byte {
	if c.err != nil {
		return nil
	}
	text := c.call("b64read %#x %#x", at, size)
	if c.err != nil {
		return nil
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err == nil && len(data) != size {
		err = fmt.Errorf("%d bytes", len(data))
	}
	if err != nil {
		c.err = fmt.Errorf("read %d bytes of memory: %w", size, err)
	}
	return data
}

// keyDirectory selects the list of files.
const keyDirectory = 0x19

type entry struct {
	key, size int
}

// directory reads the list of files.
func (c *client) directory() map[string]entry {
	head := c.transfer(keyDirectory, 4)
	if c.err != nil {
		return nil
	}
	n := binary.BigEndian.Uint32(head)
	if n > maxFiles {
		c.err = fmt.Errorf("fw_cfg has %d files", n)
		return nil
	}
	const size = 64
	list := c.transfer(-1, int(n)*size)
	out := make(map[string]entry, n)
	for ; c.err == nil && len(list) >= size; list = list[size:] {
		name, _, _ := bytes.Cut(list[8:size], []byte{0})
		e := entry{key: int(binary.BigEndian.Uint16(list[4:])), size: int(binary.BigEndian.Uint32(list))}
		if e.size > maxFile {
			c.err = fmt.Errorf("fw_cfg file %s has %s bytes", strconv.Quote(string(name)), strconv.Itoa(e.size))
		}
		out[string(name)] = e
	}
	return out
}

func (c *client) files(f Firmware, names []string) (map[string][]byte, error) {
	c.prepare(f)
	dir := c.directory()
	out := map[string][]byte{}
	for _, name := range names {
		if e, ok := dir[name]; ok && c.err == nil {
			out[name] = c.transfer(e.key, e.size)
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return out, nil
}
