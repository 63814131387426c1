// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// ErrMissing marks an input without which a register cannot be computed.
var ErrMissing = errors.New("input is missing")

// Content is what an event measures: the bytes, or their SHA-384 digest where only that is known or
// the bytes are too many to hold.
type Content struct {
	Data   []byte
	Digest measurement.Digest
	Size   uint64 // for the trace, with Digest
}

func (c Content) size() uint64 {
	if len(c.Data) > 0 {
		return uint64(len(c.Data))
	}
	return c.Size
}

func (c Content) given() bool { return len(c.Data) > 0 || len(c.Digest) > 0 }

// Item is a named piece of data from the VMM, such as a file of fw_cfg.
type Item struct {
	Name string
	Content
}

// ACPI are the three blobs that QEMU builds, as the firmware reads them over fw_cfg.
type ACPI struct {
	Loader Content // etc/table-loader
	RSDP   Content // etc/acpi/rsdp
	Tables Content // etc/acpi/tables
}

// Description is everything that goes into the registers of a directly booted TD.
type Description struct {
	Profile  Profile
	Firmware []byte
	// SecureBootBuild says that the firmware was built with secure boot. It matters only for images
	// without keys, which then measure SecureBoot = 0 instead of an absent variable.
	SecureBootBuild bool

	Memory uint64 // bytes

	// FwCfg are further fw_cfg items that the firmware measures (edk2-stable202505 and later), in any
	// order. BootMenu and bootorder have the values that a direct boot always has, unless they are given.
	FwCfg []Item
	ACPI  *ACPI
	// SMBIOS is the filtered table that edk2-stable202505 and later measure.
	SMBIOS Content

	// Kernel is the kernel's file; its digest is the Authenticode one (see KernelDigest), which does
	// only for profiles that do not patch the kernel.
	Kernel  Content
	Initrd  Content // absent without an initrd; with a digest, its size must be given
	Cmdline string
	Shim    bool // QEMU's -shim
}

// register is a run-time register while its events are added.
type register struct {
	name  string
	value [sha512.Size384]byte
	trace *measurement.Trace
}

func (r *register) add(kind, source string, data []byte) {
	r.digest(kind, source, sha512.Sum384(data), uint64(len(data)))
}

func (r *register) digest(kind, source string, content [sha512.Size384]byte, size uint64) {
	h := sha512.New384()
	h.Write(r.value[:])
	h.Write(content[:])
	h.Sum(r.value[:0])
	r.trace.Add(measurement.Step{
		Register: r.name, Source: source, Kind: kind, Size: size, Content: content[:],
		After: r.value[:],
	})
}

func (r *register) content(kind, source string, c Content) error {
	if !c.given() {
		return fmt.Errorf("%s: %w", source, ErrMissing)
	}
	if len(c.Data) > 0 {
		r.add(kind, source, c.Data)
		return nil
	}
	if len(c.Digest) != sha512.Size384 {
		return fmt.Errorf("%s: digest has %d bytes, not 48 (SHA-384)", source, len(c.Digest))
	}
	r.digest(kind, source, [sha512.Size384]byte(c.Digest), c.Size)
	return nil
}

func (r *register) done() measurement.Digest { v := r.value; return v[:] }

// separator ends the firmware's own events.
var separator = []byte{0, 0, 0, 0}

// RTMR0 returns the register of the firmware's configuration.
func RTMR0(d Description, t *measurement.Trace) (measurement.Digest, error) {
	out, err := rtmr0(d, t)
	if err != nil {
		return nil, fmt.Errorf("rtmr0: %w", err)
	}
	return out, nil
}

func rtmr0(d Description, t *measurement.Trace) (measurement.Digest, error) {
	if err := d.Profile.Check(); err != nil {
		return nil, err
	}
	if d.ACPI == nil {
		return nil, fmt.Errorf("ACPI tables of the VM: %w", ErrMissing)
	}
	if d.Profile.measuresFwCfg() && !d.SMBIOS.given() {
		return nil, fmt.Errorf("SMBIOS table, which %s measures: %w", d.Profile, ErrMissing)
	}
	r := &register{name: "rtmr0", trace: t}
	cfv, err := r.firmware(d)
	if err != nil {
		return nil, err
	}
	if err := r.fwCfg(d); err != nil {
		return nil, err
	}
	vars, err := secureBootVariables(cfv, d.SecureBootBuild)
	if err != nil {
		return nil, err
	}
	for _, v := range vars {
		r.add("EV_EFI_VARIABLE_DRIVER_CONFIG", v.name, v.measured())
	}
	r.add("EV_SEPARATOR", "separator", separator)
	if err := r.tables(d); err != nil {
		return nil, err
	}
	if err := r.bootOptions(d.Profile.BootOptions()); err != nil {
		return nil, err
	}
	if !d.Profile.separatorInRTMR1() {
		r.add("EV_SEPARATOR", "ready to boot", separator)
	}
	return r.done(), nil
}

// tables adds the VMM's ACPI and SMBIOS tables.
func (r *register) tables(d Description) error {
	const kind = "EV_PLATFORM_CONFIG_FLAGS"
	err := errors.Join(
		r.content(kind, "etc/table-loader", d.ACPI.Loader),
		r.content(kind, "etc/acpi/rsdp", d.ACPI.RSDP),
		r.content(kind, "etc/acpi/tables", d.ACPI.Tables))
	if err != nil || !d.Profile.measuresFwCfg() {
		return err
	}
	return r.content("EV_EFI_HANDOFF_TABLES", "SMBIOS", d.SMBIOS)
}

// firmware adds what the firmware's first phase measures and returns the configuration volume.
func (r *register) firmware(d Description) ([]byte, error) {
	im, err := ovmf.Parse(d.Firmware)
	if err != nil {
		return nil, err
	}
	sections, err := im.TDX()
	if err != nil {
		return nil, err
	}
	hob, err := HOB(sections, d.Memory)
	if err != nil {
		return nil, err
	}
	r.add("EV_EFI_HANDOFF_TABLES2", "TdHob", hob[:len(hob)-endSize])
	var cfv []byte
	for _, s := range sections {
		if s.Type != ovmf.CFV {
			continue
		}
		if cfv != nil {
			return nil, errors.New("firmware has more than one configuration volume")
		}
		cfv = im.Raw(s)
	}
	if cfv == nil {
		return nil, errors.New("firmware has no configuration volume (CFV)")
	}
	r.add("EV_EFI_PLATFORM_FIRMWARE_BLOB2", "CFV", cfv)
	return cfv, nil
}

// BootMenu is the name under which the fw_cfg item of that kind is given; it is no file.
const BootMenu = "BootMenu"

// With -kernel, QEMU boots an option ROM of its own first; seen in QEMU 7.2 and 10.0.2. Devices with
// a bootindex would add lines.
const (
	bootOrder       = "bootorder"
	directBootOrder = "/rom@genroms/linuxboot_dma.bin\x00"
)

// fwCfgOrder is the order in which the firmware's cache reads and measures fw_cfg.
var fwCfgOrder = []string{
	"etc/extra-pci-roots", BootMenu, "etc/boot-menu-wait", "etc/reserved-memory-end",
	"opt/ovmf/X-PciMmio64Mb", bootOrder,
}

func (r *register) fwCfg(d Description) error {
	items := map[string]Content{BootMenu: {Data: []byte{0, 0}}, bootOrder: {Data: []byte(directBootOrder)}}
	for _, i := range d.FwCfg {
		known := false
		for _, n := range fwCfgOrder {
			known = known || n == i.Name
		}
		if !known {
			return fmt.Errorf("fw_cfg item %q is not one that the firmware measures", i.Name)
		}
		if !i.given() {
			return fmt.Errorf("fw_cfg item %q is empty, so the firmware does not see it", i.Name)
		}
		items[i.Name] = i.Content
	}
	if !d.Profile.measuresFwCfg() {
		if len(d.FwCfg) > 0 {
			return fmt.Errorf("fw_cfg items are given, which %s does not measure", d.Profile)
		}
		return nil
	}
	for _, n := range fwCfgOrder {
		if c, ok := items[n]; ok {
			if err := r.content("EV_PLATFORM_CONFIG_FLAGS", "fw_cfg "+n, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *register) bootOptions(options []BootOption) error {
	var order []byte
	for i := range options {
		order = append(order, byte(i), 0)
	}
	r.add("EV_EFI_VARIABLE_BOOT", "BootOrder", order)
	for i, o := range options {
		b, err := o.encode()
		if err != nil {
			return err
		}
		r.add("EV_EFI_VARIABLE_BOOT", fmt.Sprintf("Boot%04X", i), b)
	}
	return nil
}

// KernelDigest returns the Authenticode digest under which the firmware measures the kernel.
func KernelDigest(d Description) (measurement.Digest, error) {
	k := d.Kernel.Data
	switch {
	case !d.Kernel.given():
		return nil, fmt.Errorf("kernel: %w", ErrMissing)
	case len(k) == 0 && d.Profile.KernelPatched():
		return nil, fmt.Errorf("kernel's bytes, which are patched with %s: %w", d.Profile, ErrMissing)
	case len(k) == 0:
		if len(d.Kernel.Digest) != sha512.Size384 {
			return nil, fmt.Errorf("kernel's digest has %d bytes, not 48 (SHA-384)", len(d.Kernel.Digest))
		}
		return d.Kernel.Digest, nil
	case d.Profile.KernelPatched() && d.Memory == 0:
		return nil, fmt.Errorf("memory size, on which the kernel's digest depends with %s: %w", d.Profile, ErrMissing)
	case d.Profile.KernelPatched():
		var err error
		if k, err = patchKernel(k, d.Initrd.size(), d.Memory); err != nil {
			return nil, err
		}
	}
	h := sha512.New384()
	if err := Authenticode(k, h); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return h.Sum(nil), nil
}

// RTMR1 returns the register of the boot path: the kernel's image and the firmware's exit.
func RTMR1(d Description, t *measurement.Trace) (measurement.Digest, error) {
	if err := d.Profile.Check(); err != nil {
		return nil, fmt.Errorf("rtmr1: %w", err)
	}
	kernel, err := KernelDigest(d)
	if err != nil {
		return nil, fmt.Errorf("rtmr1: %w", err)
	}
	r := &register{name: "rtmr1", trace: t}
	r.digest("EV_EFI_BOOT_SERVICES_APPLICATION", "kernel", [sha512.Size384]byte(kernel), d.Kernel.size())
	r.add("EV_EFI_ACTION", "boot", []byte("Calling EFI Application from Boot Option"))
	if d.Profile.separatorInRTMR1() {
		r.add("EV_SEPARATOR", "ready to boot", separator)
	}
	r.add("EV_EFI_ACTION", "exit invoked", []byte("Exit Boot Services Invocation"))
	r.add("EV_EFI_ACTION", "exit returned", []byte("Exit Boot Services Returned with Success"))
	return r.done(), nil
}

// RTMR2 returns the register of what the kernel's EFI stub measures: command line and initrd.
func RTMR2(d Description, t *measurement.Trace) (measurement.Digest, error) {
	if err := d.Profile.Check(); err != nil {
		return nil, fmt.Errorf("rtmr2: %w", err)
	}
	initrd := d.Initrd.given()
	r := &register{name: "rtmr2", trace: t}
	r.add("EV_EVENT_TAG", "LoadOptions", loadOptions(d.Profile, d.Cmdline, initrd, d.Shim))
	if initrd {
		if err := r.content("EV_EVENT_TAG", "initrd", d.Initrd); err != nil {
			return nil, fmt.Errorf("rtmr2: %w", err)
		}
	}
	return r.done(), nil
}
