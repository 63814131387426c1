// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"fmt"
	"strconv"
	"strings"
)

// Profile names a pair of edk2 and QEMU releases. Measured data and their order change from release
// to release and cannot be seen in the firmware image, so the profile is stated and never guessed.
type Profile struct {
	EDK2      int // stable tag, such as 202508
	QEMUMajor int
	QEMUMinor int
}

// The releases at which shapes change (edk2's and QEMU's histories).
const (
	edk2SeparatorInRTMR1 = 202411 // efaf8931: the separator at ReadyToBoot leaves RTMR0
	edk2UnpatchedKernel  = 202502 // prefers etc/boot/kernel
	edk2MeasuresFwCfg    = 202505 // also SMBIOS, and a second boot option
	edk2InitrdFirst      = 202508 // a2ac0fea49: "initrd=initrd" comes before the command line
	edk2First, edk2Last  = 202302, 202699

	// QEMU releases as 100 × major + minor.
	qemuFirst        = 800  // no TDX before, not even in vendors' trees
	qemuSinglePass   = 900  // vendor kernels with QEMU 8 added pages in two passes
	qemuBootKernel   = 1000 // offers etc/boot/kernel
	qemuNeverPatches = 1002 // a7542a38f399
	qemuUnread       = 1200 // later releases have not been read
)

// ParseProfile reads a name such as "edk2-stable202508+qemu-11.0". Releases that have not been looked
// at are refused.
func ParseProfile(s string) (Profile, error) {
	edk2, rest, ok := strings.Cut(strings.TrimPrefix(s, "edk2-stable"), "+qemu-")
	major, minor, dot := strings.Cut(rest, ".")
	if !strings.HasPrefix(s, "edk2-stable") || !ok || !dot || len(edk2) != 6 || !digits(edk2) ||
		len(major) > 2 || !digits(major) || len(minor) > 2 || !digits(minor) {
		return Profile{}, fmt.Errorf("profile %q is not of the form edk2-stable202508+qemu-11.0", s)
	}
	var p Profile
	p.EDK2, _ = strconv.Atoi(edk2) // digits only
	p.QEMUMajor, _ = strconv.Atoi(major)
	p.QEMUMinor, _ = strconv.Atoi(minor)
	return p, p.Check()
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// String returns the name that ParseProfile reads.
func (p Profile) String() string {
	return fmt.Sprintf("edk2-stable%06d+qemu-%d.%d", p.EDK2, p.QEMUMajor, p.QEMUMinor)
}

// Check returns why nothing is known of the profile, or nil.
func (p Profile) Check() error {
	if p.EDK2 < edk2First || p.EDK2 > edk2Last {
		return fmt.Errorf("profile %s: edk2 releases from stable%d to 2026 are known", p, edk2First)
	}
	if p.qemu() < qemuFirst || p.qemu() >= qemuUnread {
		return fmt.Errorf("profile %s: QEMU releases from 8.0 to 11.x are known", p)
	}
	return nil
}

func (p Profile) qemu() int { return 100*p.QEMUMajor + p.QEMUMinor }

// Order returns how QEMU's release adds pages.
func (p Profile) Order() Order {
	if p.qemu() < qemuSinglePass {
		return TwoPass
	}
	return SinglePass
}

// KernelPatched reports whether QEMU changes the kernel's setup header before the firmware measures it.
func (p Profile) KernelPatched() bool {
	if p.qemu() >= qemuNeverPatches {
		return false
	}
	return p.qemu() < qemuBootKernel || p.EDK2 < edk2UnpatchedKernel
}

// MeasuresSMBIOS reports whether the firmware measures the SMBIOS table and fw_cfg items.
func (p Profile) MeasuresSMBIOS() bool { return p.measuresFwCfg() }

func (p Profile) measuresFwCfg() bool    { return p.EDK2 >= edk2MeasuresFwCfg }
func (p Profile) separatorInRTMR1() bool { return p.EDK2 >= edk2SeparatorInRTMR1 }
func (p Profile) initrdFirst() bool      { return p.EDK2 >= edk2InitrdFirst }

const (
	ovmfVolume  = "7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1" // OVMF's DXE volume
	fileUIApp   = "462caa21-7614-4503-836e-8ab6f4662331"
	fileMenuApp = "eec25bdc-67f2-4d95-b1d5-f81b2039d11d"
)

// BootOptions returns the boot options that the firmware registers for a directly booted machine
// without disks, in order.
func (p Profile) BootOptions() []BootOption {
	if !p.measuresFwCfg() {
		return []BootOption{{0x109, "UiApp", ovmfVolume, fileUIApp}}
	}
	return []BootOption{
		{0x109, "BootManagerMenuApp", ovmfVolume, fileMenuApp},
		{0x101, "EFI Firmware Setup", ovmfVolume, fileUIApp},
	}
}
