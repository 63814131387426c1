// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tdx computes the measurements of Intel TDX virtual machines: MRTD from the firmware image, and
// RTMR0 to RTMR2 from the measurements that QEMU's q35 machine and OVMF make in a direct boot. Package ccel reads
// the event log in which a guest explains its registers.
//
// MRTD depends on the firmware alone. The other registers depend on the releases of edk2 and QEMU,
// which are named by a Profile. ACPI tables, and the parts of SMBIOS and fw_cfg that newer firmware measures,
// are inputs: the caller asks the QEMU that will run. All functions are pure.
package tdx
