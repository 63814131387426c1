// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Constants of loop(4).
const (
	loopMajor    = 7
	loopBlock    = 4096
	loopAttempts = 16 // another process may take the free device first
)

// Loop makes a read-only block device over a file, and returns it with its number, "major:minor". The kernel frees the
// device when its last user has closed it. The module loop must be loaded.
func Loop(f *os.File) (dev *os.File, number string, err error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer ctl.Close()
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", os.NewSyscallError("find a loop device", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDONLY, 0)
		if err != nil {
			return nil, "", err
		}
		cfg := unix.LoopConfig{Fd: uint32(f.Fd()), Size: loopBlock} //nolint:gosec // a descriptor
		cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err == nil {
			return dev, strconv.Itoa(loopMajor) + ":" + strconv.Itoa(n), nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, "", os.NewSyscallError("set up a loop device", err)
		}
	}
	return nil, "", errors.New("no loop device is free")
}
