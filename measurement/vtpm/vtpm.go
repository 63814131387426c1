// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package vtpm computes the PCRs of the SHA-256 bank that a VM of platform "vtpm" has once its agent serves: the values
// that firmware (OVMF), kernel and agent extend a virtual TPM with at a direct boot by QEMU. It reads no files.
//
// PCR 0 begins with the firmware's volumes as they lie in memory when they are measured. The second one, of drivers,
// is the one in the image. The first one, PEIFV, has run by then and changed its own variables, so that its digest
// depends on the size of the VM and cannot be computed from the image. It comes from the event log of a VM of the same
// firmware and size that is trusted (Firmware.PEI). PCR 10 is left out: it is Linux' own (IMA).
//
// The events and their order come from event logs of OVMF 2022.11 and Linux 6.12; each digest was computed again.
// docs/decisions/vtpm.md has the table.
package vtpm

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx"
)

// EDK2 is the release of edk2 whose measurements are known: Debian 12 has it. Later ones measure ACPI tables and SMBIOS
// as well.
const EDK2 = 202211

// profile has the shapes of that release. QEMU's does not matter: this firmware reads the kernel with the header that
// each QEMU fills in.
var profile = tdx.Profile{EDK2: EDK2, QEMUMajor: 7, QEMUMinor: 2}

// InitdataPCR is the PCR that the agent extends.
const InitdataPCR = 8

// Firmware is what PCR 0 depends on.
type Firmware struct {
	PEI [sha256.Size]byte // SHA-256 of PEIFV as it was measured; zero: unknown, and PCR 0 is left out
	DXE [sha256.Size]byte // SHA-256 of DXEFV
}

// Description is everything that goes into the PCRs.
type Description struct {
	Firmware   Firmware
	Kernel     []byte // bzImage
	Initrd     [sha256.Size]byte
	InitrdSize uint64
	Cmdline    string
	Memory     uint64 // bytes
	// Initdata is the digest of the pod's initdata; nil: it has none.
	Initdata *[sha256.Size]byte
}

// bank is a set of PCRs while events are added.
type bank struct {
	values map[int][sha256.Size]byte
	trace  *measurement.Trace
}

func (b *bank) digest(pcr int, kind, source string, content [sha256.Size]byte) {
	old := b.values[pcr]
	now := sha256.Sum256(append(old[:], content[:]...))
	b.values[pcr] = now
	b.trace.Add(measurement.Step{
		Register: fmt.Sprintf("pcr%02d", pcr), Source: source, Kind: kind, Content: content[:], After: now[:],
	})
}

func (b *bank) add(pcr int, kind, source string, data []byte) {
	b.digest(pcr, kind, source, sha256.Sum256(data))
}

// PCRs returns the PCRs that the description determines, by number.
func PCRs(d Description, t *measurement.Trace) (map[int]measurement.Digest, error) {
	if d.InitrdSize == 0 {
		return nil, errors.New("without an initrd nothing vouches for the agent")
	}
	b := &bank{values: map[int][sha256.Size]byte{}, trace: t}
	if err := b.firmware(d); err != nil {
		return nil, err
	}
	b.kernel(d)
	var initdata [sha256.Size]byte
	if d.Initdata != nil {
		initdata = *d.Initdata
	}
	b.digest(InitdataPCR, "agent", "initdata", initdata)
	out := map[int]measurement.Digest{}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15} {
		if n == 0 && d.Firmware.PEI == [sha256.Size]byte{} {
			continue
		}
		v := b.values[n]
		out[n] = v[:]
	}
	return out, nil
}

// separator ends the firmware's own events of a PCR.
var separator = []byte{0, 0, 0, 0}

func (b *bank) firmware(d Description) error {
	b.add(0, "EV_S_CRTM_VERSION", "version", []byte{0, 0})
	b.digest(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB", "PEIFV", d.Firmware.PEI)
	b.digest(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB", "DXEFV", d.Firmware.DXE)
	for _, v := range tdx.SecureBootEvents() {
		b.add(7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "secure boot", v)
	}
	b.add(7, "EV_SEPARATOR", "separator", separator)
	kernel, err := profile.ShownKernel(d.Kernel, d.InitrdSize, d.Memory)
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := tdx.Authenticode(kernel, h); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	b.digest(4, "EV_EFI_BOOT_SERVICES_APPLICATION", "kernel", [sha256.Size]byte(h.Sum(nil)))
	boot, err := profile.BootEvents()
	if err != nil {
		return err
	}
	for _, v := range boot {
		b.add(1, "EV_EFI_VARIABLE_BOOT", "boot options", v)
	}
	b.add(4, "EV_EFI_ACTION", "boot", []byte("Calling EFI Application from Boot Option"))
	for n := range 7 {
		b.add(n, "EV_SEPARATOR", "separator", separator)
	}
	return nil
}

// kernel adds what the kernel's EFI stub measures, and the firmware at the end of its services.
func (b *bank) kernel(d Description) {
	b.add(9, "EV_EVENT_TAG", "LoadOptions", profile.LoadOptions(d.Cmdline))
	b.digest(9, "EV_EVENT_TAG", "initrd", d.Initrd)
	b.add(5, "EV_EFI_ACTION", "exit invoked", []byte("Exit Boot Services Invocation"))
	b.add(5, "EV_EFI_ACTION", "exit returned", []byte("Exit Boot Services Returned with Success"))
}
