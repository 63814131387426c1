// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Devices are those that a VMM may open.
type Devices struct {
	Chars []string // paths of character devices; those that do not exist are left out
	Disks bool     // any block device: for a VMM that opens its disks by name
}

// device is the number of a character device.
type device struct{ major, minor uint32 }

// devicesAt are the devices at the paths; those that this host does not have are left out.
func devicesAt(paths []string) []device {
	var out []device
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err == nil {
			out = append(out, device{unix.Major(st.Rdev), unix.Minor(st.Rdev)})
		}
	}
	return out
}

// LimitDevices lets the processes in the groups open and make no other devices. Open
// descriptors stay usable. The error is an errors.ErrUnsupported where neither controller of cgroup v1 nor kernel of
// cgroup v2 can do it.
func LimitDevices(groups []string, d Devices) error {
	allowed := devicesAt(d.Chars)
	limited, lack := false, error(nil)
	for _, g := range groups {
		if _, err := os.Stat(filepath.Join(g, "devices.deny")); err == nil {
			if err := limitV1(g, allowed, d.Disks); err != nil {
				return err
			}
			limited = true
			continue
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(g, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue // another controller's
		}
		if err := limitV2(g, allowed, d.Disks); err != nil {
			lack = fmt.Errorf("cgroup %s: %w: %w", g, err, errors.ErrUnsupported)
			continue
		}
		limited = true
	}
	if limited {
		return nil
	}
	return lack
}

// CanLimitDevices says why LimitDevices would not work on this host.
func CanLimitDevices() error {
	if v1, _ := filepath.Glob(filepath.Join(Root, "*", "devices.deny")); len(v1) > 0 { // the pattern is well-formed
		return nil
	}
	fd, err := loadProgram(deviceProgram(nil, false))
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func limitV1(group string, allowed []device, disks bool) error {
	if err := set(group, "devices.deny", "a"); err != nil {
		return err
	}
	var rules []string
	for _, d := range allowed {
		rules = append(rules, fmt.Sprintf("c %d:%d rwm", d.major, d.minor))
	}
	if disks {
		rules = append(rules, "b *:* rwm")
	}
	for _, r := range rules {
		// A group above that does not allow it is this host's choice.
		if err := set(group, "devices.allow", r); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return nil
}

// limitV2 attaches a program to the group. It goes with the group, and programs of the groups above hold besides.
func limitV2(group string, allowed []device, disks bool) error {
	dir, err := unix.Open(group, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	program, err := loadProgram(deviceProgram(allowed, disks))
	if err != nil {
		return err
	}
	defer unix.Close(program) // the group holds it
	attr := struct{ target, program, kind, flags uint32 }{
		uint32(dir), uint32(program), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI, //nolint:gosec // descriptors
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach a device program: %w", err)
	}
	return nil
}

// instruction is one of BPF's (Linux, Documentation/bpf/standardization/instruction-set.rst).
type instruction struct {
	code     byte
	dst, src byte // registers
	offset   int16
	value    int32
}

// Codes of instructions.
const (
	loadWord    = 0x61 // dst = the 32-bit word at src + offset
	andValue    = 0x57 // dst &= value
	setValue    = 0xb7 // dst = value
	ifEqual     = 0x15 // skip offset instructions if dst == value
	ifDifferent = 0x55
	leave       = 0x95 // register 0 is the answer
)

// deviceProgram allows the character devices, and block devices or none. Register 1 points to a bpf_cgroup_dev_ctx:
// access and type in the halves of a word, major, minor.
func deviceProgram(allowed []device, disks bool) []instruction {
	const answer, context, kind, major, minor = 0, 1, 2, 3, 4
	n := int16(len(allowed)) //nolint:gosec // a handful
	p := []instruction{
		{code: loadWord, dst: kind, src: context},
		{code: loadWord, dst: major, src: context, offset: 4},
		{code: loadWord, dst: minor, src: context, offset: 8},
		{code: andValue, dst: kind, value: 0xffff},
	}
	if disks {
		p = append(p, instruction{code: ifEqual, dst: kind, value: unix.BPF_DEVCG_DEV_BLOCK, offset: 2*n + 3})
	}
	// to the refusal
	p = append(p, instruction{code: ifDifferent, dst: kind, value: unix.BPF_DEVCG_DEV_CHAR, offset: 2 * n})
	for i, d := range allowed {
		left := 2 * (n - 1 - int16(i))
		p = append(p,
			instruction{code: ifDifferent, dst: major, value: int32(d.major), offset: 1},    //nolint:gosec // 12 bits
			instruction{code: ifEqual, dst: minor, value: int32(d.minor), offset: left + 2}) //nolint:gosec // 20 bits
	}
	return append(p,
		instruction{code: setValue, dst: answer, value: 0},
		instruction{code: leave},
		instruction{code: setValue, dst: answer, value: 1},
		instruction{code: leave})
}

func loadProgram(p []instruction) (fd int, err error) {
	var code []byte
	for _, i := range p {
		code = append(code, i.code, i.src<<4|i.dst)
		code = binary.LittleEndian.AppendUint16(code, uint16(i.offset)) //nolint:gosec // two's complement
		code = binary.LittleEndian.AppendUint32(code, uint32(i.value))  //nolint:gosec // likewise
	}
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license unsafe.Pointer
	}{unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(p)), unsafe.Pointer(&code[0]), unsafe.Pointer(&license[0])} //nolint:gosec // a handful
	fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return 0, fmt.Errorf("load a device program (CONFIG_CGROUP_BPF, CAP_BPF): %w", err)
	}
	return fd, nil
}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
