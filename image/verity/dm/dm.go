// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dm opens dm-verity and dm-crypt devices through the kernel's device-mapper ioctls. It needs root,
// /dev/mapper/control and the modules dm-mod and dm-verity or dm-crypt; device nodes are made by devtmpfs.
package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/verity"
)

// Constants of <linux/dm-ioctl.h>.
const (
	control    = "/dev/mapper/control"
	headerSize = 312
	nameLen    = 128
	uuidLen    = 129
	specSize   = 40

	cmdDevCreate   = 3
	cmdDevRemove   = 4
	cmdDevSuspend  = 6 // without flagSuspend: resume
	cmdTableLoad   = 9
	cmdTableStatus = 12

	flagReadOnly       = 1 << 0
	flagSecure         = 1 << 15 // the kernel wipes its copies of the request
	flagDeferredRemove = 1 << 17

	offDev  = 40
	offName = 48
	offUUID = offName + nameLen
)

// bufferSize is enough for the header, one target and its table or status.
const bufferSize = 4096

// Device is an open verity device.
type Device struct {
	Name string // of the mapping
	Path string // of the block device, /dev/dm-N
}

// Open makes a read-only device over the block device backing, given as a path or as "major:minor".
// Blocks are verified when they are read; a block that does not verify reads as an I/O error.
func Open(name string, p verity.Params, backing string) (Device, error) {
	if err := p.Validate(); err != nil {
		return Device{}, err
	}
	if name == "" || len(name) >= nameLen || strings.ContainsAny(name, "/ ") {
		return Device{}, fmt.Errorf("device-mapper name %q is not usable", name)
	}
	return open(name, request{
		name: name, uuid: "COCO-VERITY-" + name, flags: flagReadOnly,
		sectors: p.Sectors(), target: "verity", table: []byte(p.Table(backing)),
	})
}

// open makes a mapping of one target and brings it to life.
func open(name string, r request) (Device, error) {
	ctl, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return Device{}, fmt.Errorf("device-mapper: %w", err)
	}
	defer ctl.Close()
	out, err := call(ctl, cmdDevCreate, request{name: name, flags: r.flags, uuid: r.uuid})
	if err != nil {
		return Device{}, fmt.Errorf("create mapping %s: %w", name, err)
	}
	dev := binary.NativeEndian.Uint64(out[offDev:])
	d := Device{Name: name, Path: "/dev/dm-" + strconv.Itoa(int(unix.Minor(dev)))}
	r.uuid = "" // a mapping has one name at a time
	if _, err = call(ctl, cmdTableLoad, r); err != nil {
		err = fmt.Errorf("load %s table of %s: %w", r.target, name, err)
	} else if _, err = call(ctl, cmdDevSuspend, request{name: name, flags: r.flags &^ flagSecure}); err != nil {
		err = fmt.Errorf("activate mapping %s: %w", name, err)
	}
	if err != nil {
		_, rerr := call(ctl, cmdDevRemove, request{name: name})
		return Device{}, errors.Join(err, rerr)
	}
	return d, nil
}

// Corrupted reports whether a block of the device has failed verification since it was opened.
func (d Device) Corrupted() (bool, error) {
	ctl, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("device-mapper: %w", err)
	}
	defer ctl.Close()
	out, err := call(ctl, cmdTableStatus, request{name: d.Name})
	if err != nil {
		return false, fmt.Errorf("status of mapping %s: %w", d.Name, err)
	}
	start := binary.NativeEndian.Uint32(out[16:]) // data_start
	if binary.NativeEndian.Uint32(out[20:]) != 1 || uint64(start)+specSize >= uint64(len(out)) {
		return false, fmt.Errorf("status of mapping %s: unexpected answer", d.Name)
	}
	status := cString(out[start+specSize:])
	switch {
	case strings.HasPrefix(status, "V"):
		return false, nil
	case strings.HasPrefix(status, "C"):
		return true, nil
	}
	return false, fmt.Errorf("status of mapping %s: unknown word %q", d.Name, status)
}

// Close removes the device; if somebody still uses it, the kernel does so when they are done.
func (d Device) Close() error {
	ctl, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("device-mapper: %w", err)
	}
	defer ctl.Close()
	_, err = call(ctl, cmdDevRemove, request{name: d.Name})
	if errors.Is(err, unix.EBUSY) {
		_, err = call(ctl, cmdDevRemove, request{name: d.Name, flags: flagDeferredRemove})
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("remove mapping %s: %w", d.Name, err)
	}
	return nil
}

type request struct {
	name, uuid string
	flags      uint32
	sectors    uint64 // of the one target
	target     string
	table      []byte
}

// call performs one ioctl and returns the kernel's answer, which begins with the header.
func call(ctl *os.File, cmd uintptr, r request) ([]byte, error) {
	// struct dm_ioctl wants eight-byte alignment.
	words := make([]uint64, bufferSize/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), bufferSize)
	ne := binary.NativeEndian
	ne.PutUint32(buf[0:], 4) // version 4.0.0: every kernel accepts it
	ne.PutUint32(buf[12:], bufferSize)
	ne.PutUint32(buf[16:], headerSize)
	ne.PutUint32(buf[28:], r.flags)
	copy(buf[offName:offName+nameLen-1], r.name)
	copy(buf[offUUID:offUUID+uuidLen-1], r.uuid)
	if r.target != "" {
		spec := buf[headerSize:]
		if len(r.table) >= len(spec)-specSize {
			return nil, errors.New("table is too long")
		}
		ne.PutUint32(buf[20:], 1) // target_count
		ne.PutUint64(spec[8:], r.sectors)
		copy(spec[24:39], r.target)
		copy(spec[specSize:], r.table)
	}
	const dirReadWrite = 3
	nr := uintptr(dirReadWrite)<<30 | headerSize<<16 | 0xfd<<8 | cmd
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), nr, uintptr(unsafe.Pointer(&words[0])))
	runtime.KeepAlive(words)
	if r.flags&flagSecure != 0 {
		clear(buf[headerSize:])
	}
	if errno != 0 {
		return nil, errno
	}
	return buf, nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
