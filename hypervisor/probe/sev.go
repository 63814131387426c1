// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux, include/uapi/linux/psp-sev.h.
const (
	sevIssueCmd       = 0xc0105300 // SEV_ISSUE_CMD: _IOWR('S', 0, 16 bytes)
	snpPlatformStatus = 9          // SNP_PLATFORM_STATUS
	snpStatusSize     = 32         // struct sev_user_data_snp_status
)

// SEVStatus asks the security processor of this machine for the version of its firmware.
func SEVStatus() (string, error) {
	fd, err := unix.Open("/dev/sev", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	status := make([]byte, snpStatusSize)
	var pin runtime.Pinner
	pin.Pin(&status[0])
	defer pin.Unpin()
	// struct sev_issue_cmd, packed: u32 cmd, u64 data, u32 error.
	cmd := make([]byte, 16)
	binary.LittleEndian.PutUint32(cmd, snpPlatformStatus)
	binary.LittleEndian.PutUint64(cmd[4:], uint64(uintptr(unsafe.Pointer(&status[0]))))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), sevIssueCmd,
		uintptr(unsafe.Pointer(&cmd[0]))); errno != 0 {
		return "", fmt.Errorf("ask for the platform's status: %w (firmware error %#x)", errno,
			binary.LittleEndian.Uint32(cmd[12:]))
	}
	return decodeSNPStatus(status)
}

// decodeSNPStatus puts the answer into words: version, build, guests, and the TCB that reports carry.
func decodeSNPStatus(b []byte) (string, error) {
	if len(b) != snpStatusSize {
		return "", errors.New("status of the wrong size")
	}
	if b[2] == 0 {
		return "", errors.New("SNP is not initialized")
	}
	build := binary.LittleEndian.Uint32(b[4:])
	guests := binary.LittleEndian.Uint32(b[12:])
	tcb := binary.LittleEndian.Uint64(b[24:])
	return fmt.Sprintf("SNP firmware %d.%d build %d, %d guests, reported TCB %#016x", b[0], b[1], build, guests, tcb), nil
}
