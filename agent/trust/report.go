// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The launch of a VM in a TEE is bound to initdata by a field that the host sets before the launch and cannot change
// afterwards: HOSTDATA of SEV-SNP, MRCONFIGID of TDX. The guest reads the field from its own report, through the driver
// of its processor: no network, quoting service, clock or key of anyone takes part. The driver talks to AMD's secure
// processor by an encrypted channel, and to Intel's module by an instruction, so the host has no say in the answer. A
// nonce shows that the answer is to this very question.

// field is what the launch is bound to.
type field struct {
	name  string
	value []byte
}

func (f field) zero() bool { return bytes.Equal(f.value, make([]byte, len(f.value))) }

// fits says whether a digest is in the field: cut to its length, or with zeros behind it, as CoCo does.
func (f field) fits(digest []byte) bool {
	want := make([]byte, len(f.value))
	copy(want, digest)
	return bytes.Equal(f.value, want)
}

// nonceSize is the length of REPORTDATA on both platforms.
const nonceSize = 64

// ask has a driver fill resp with the report that answers req. Both have fixed layouts.
type ask func(device string, command uintptr, arg unsafe.Pointer) error

// ioctl asks the real driver.
func ioctl(device string, command uintptr, arg unsafe.Pointer) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), command, uintptr(arg)); errno != 0 {
		return fmt.Errorf("%s: %w", device, errno)
	}
	return nil
}

// readField reads the field of the platform that the guest runs on.
func (c Config) readField() (field, error) {
	var nonce [nonceSize]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return field{}, err
	}
	ask := c.ask
	if ask == nil {
		ask = ioctl
	}
	if _, err := os.Lstat(filepath.Join(c.Sys, "bus/platform/devices/sev-guest")); err == nil {
		if err := c.load("sev_guest"); err != nil {
			return field{}, err
		}
		return hostData(ask, nonce)
	}
	if err := c.load("tdx_guest"); err != nil {
		return field{}, err
	}
	return configID(ask, nonce)
}

// Layout of Linux' sev-guest driver (include/uapi/linux/sev-guest.h) and of AMD's MSG_REPORT_REQ, MSG_REPORT_RSP and
// ATTESTATION_REPORT (document 56860, tables 21 to 24).
const (
	snpGetReport = 0xc0205300 // _IOWR('S', 0, struct snp_guest_request_ioctl)
	snpResponse  = 4000

	snpHead       = 32 // of the response; the report follows
	snpReportSize = 1184
	snpVersion    = 2 // the first that SNP firmware has released
	snpReportData = 0x50
	snpHostData   = 0xc0
	hostDataSize  = 32
)

type snpRequest struct {
	version  uint8
	_        [7]byte
	req      unsafe.Pointer
	resp     unsafe.Pointer
	exitInfo uint64
}

type snpReportRequest struct {
	data [nonceSize]byte
	vmpl uint32
	_    [28]byte
}

// hostData reads HOSTDATA.
func hostData(ask ask, nonce [nonceSize]byte) (field, error) {
	q := &snpReportRequest{data: nonce}
	resp := new([snpResponse]byte)
	var pin runtime.Pinner // the driver is given addresses within the argument
	defer pin.Unpin()
	pin.Pin(q)
	pin.Pin(resp)
	r := &snpRequest{version: 1, req: unsafe.Pointer(q), resp: unsafe.Pointer(resp)}
	if err := ask("/dev/sev-guest", snpGetReport, unsafe.Pointer(r)); err != nil {
		return field{}, fmt.Errorf("report of SEV-SNP: %w (firmware and VMM say %#x)", err, r.exitInfo)
	}
	status, size := binary.LittleEndian.Uint32(resp[0:]), binary.LittleEndian.Uint32(resp[4:])
	if status != 0 || size < snpReportSize || size > snpResponse-snpHead {
		return field{}, fmt.Errorf("report of SEV-SNP: status %#x and %d bytes", status, size)
	}
	report := resp[snpHead:]
	if v := binary.LittleEndian.Uint32(report); v < snpVersion {
		return field{}, fmt.Errorf("report of SEV-SNP: version %d", v)
	}
	if !bytes.Equal(report[snpReportData:][:nonceSize], nonce[:]) {
		return field{}, errors.New("report of SEV-SNP: it does not have the nonce of this request")
	}
	return field{"HOSTDATA", bytes.Clone(report[snpHostData:][:hostDataSize])}, nil
}

// Layout of Linux' tdx-guest driver (include/uapi/linux/tdx-guest.h) and of Intel's TDREPORT_STRUCT (TDX module ABI,
// TDREPORT_STRUCT, REPORTMACSTRUCT and TDINFO_STRUCT).
const (
	tdxGetReport = 0xc4405401 // _IOWR('T', 1, struct tdx_report_req)
	tdReportSize = 1024
	tdReportType = 0x81 // of a TD
	tdReportData = 128
	tdConfigID   = 576
	configIDSize = 48
)

type tdRequest struct {
	data   [nonceSize]byte
	report [tdReportSize]byte
}

// configID reads MRCONFIGID.
func configID(ask ask, nonce [nonceSize]byte) (field, error) {
	r := &tdRequest{data: nonce}
	if err := ask("/dev/tdx_guest", tdxGetReport, unsafe.Pointer(r)); err != nil {
		return field{}, fmt.Errorf("report of TDX: %w", err)
	}
	if r.report[0] != tdReportType {
		return field{}, fmt.Errorf("report of TDX: it is of type %#x, not of a TD", r.report[0])
	}
	if !bytes.Equal(r.report[tdReportData:][:nonceSize], nonce[:]) {
		return field{}, errors.New("report of TDX: it does not have the nonce of this request")
	}
	return field{"MRCONFIGID", bytes.Clone(r.report[tdConfigID:][:configIDSize])}, nil
}
