// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// Blob is bytes that are placed in guest memory, measured.
type Blob struct {
	Name string // for messages
	GPA  uint64
	Data []byte
}

// IGVMContents is what an IGVM file for Cloud Hypervisor's SNP launch is made of.
type IGVMContents struct {
	Policy idblock.Policy

	// Firmware ends at 4 GiB, where Cloud Hypervisor has 4 MiB of memory for it. The sections of its
	// SEV metadata become pages in table order.
	Firmware []byte
	// Hashes, if given, fill the firmware's kernel-hash section, for a kernel that comes through fw_cfg.
	Hashes *kernelhashes.Hashes
	// Blobs are further contents, such as a kernel, its command line and an initrd that the
	// firmware or boot stub expects at fixed addresses.
	Blobs []Blob

	// Context is the save area of the boot processor; nil stands for the reset vector with
	// Signature and Features (see BootContext).
	Context   []byte
	Signature uint32
	Features  uint64

	// IDBlock and IDAuth, if given, are enforced by the AMD firmware at launch. Their signatures are the
	// caller's business (package idauth).
	IDBlock, IDAuth []byte
}

// clhFirmwareSize is the memory below 4 GiB that Cloud Hypervisor has for a boot stub.
const clhFirmwareSize = 4 << 20

// ComposeIGVM returns the file for a set of contents. Measure it with MeasureIGVM.
func ComposeIGVM(c IGVMContents) ([]byte, error) {
	if err := c.Policy.Check(); err != nil {
		return nil, fmt.Errorf("compose igvm file: %w", err)
	}
	w := &igvm.Writer{Policy: uint64(c.Policy)}
	pages, err := c.pages(w)
	if err == nil {
		err = disjoint(pages)
	}
	if err != nil {
		return nil, fmt.Errorf("compose igvm file: %w", err)
	}
	context := c.Context
	if context == nil {
		context = BootContext(c.Signature, c.Features|FeatureSNPActive)
	}
	w.Context(0, igvm.KVMVMSAGPA, context)
	if c.IDBlock != nil || c.IDAuth != nil {
		if _, err := idblock.Parse(c.IDBlock); err != nil {
			return nil, fmt.Errorf("compose igvm file: %w", err)
		}
		if len(c.IDAuth) != idblock.AuthSize {
			return nil, fmt.Errorf("compose igvm file: id authentication has %d bytes, not %d", len(c.IDAuth), idblock.AuthSize)
		}
		w.IDBlock(c.IDBlock, c.IDAuth)
	}
	return w.Bytes()
}

// extent is a named range of guest memory that the file fills.
type extent struct {
	name       string
	start, end uint64
}

func (c IGVMContents) pages(w *igvm.Writer) ([]extent, error) {
	var out []extent
	add := func(name string, gpa uint64, size int) {
		out = append(out, extent{name, gpa, gpa + (uint64(size)+pageSize-1)&^(pageSize-1)}) //nolint:gosec // a length
	}
	if c.Firmware != nil {
		im, err := ovmf.Parse(c.Firmware)
		if err != nil {
			return nil, err
		}
		if len(c.Firmware) > clhFirmwareSize {
			return nil, fmt.Errorf("firmware has %d bytes; Cloud Hypervisor has memory for %d", len(c.Firmware), clhFirmwareSize)
		}
		w.Data(im.GPA(), c.Firmware)
		add("firmware", im.GPA(), len(c.Firmware))
		sections, err := c.sections(w)
		if err != nil {
			return nil, err
		}
		for i, s := range sections {
			add(fmt.Sprintf("firmware's section %d (%s)", i, s.Type), uint64(s.GPA), int(s.Size))
		}
	} else if c.Hashes != nil {
		return nil, errors.New("kernel hashes without a firmware that checks them")
	}
	for _, b := range c.Blobs {
		if len(b.Data) == 0 {
			return nil, fmt.Errorf("%s is empty", b.Name)
		}
		if b.GPA%pageSize != 0 || b.GPA > vmsaGPA-uint64(len(b.Data)) {
			return nil, fmt.Errorf("%s cannot lie at %#x", b.Name, b.GPA)
		}
		w.Data(b.GPA, b.Data)
		add(b.Name, b.GPA, len(b.Data))
	}
	return out, nil
}

// sections writes the firmware's metadata sections; a firmware without metadata has none.
func (c IGVMContents) sections(w *igvm.Writer) ([]ovmf.Section, error) {
	in, err := readImage(c.Firmware)
	if errors.Is(err, ovmf.ErrAbsent) && c.Hashes == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkHashSections(Description{Kernel: c.Hashes}, in); err != nil {
		return nil, err
	}
	for i, s := range in.sections.Sections {
		gpa := uint64(s.GPA)
		switch {
		case s.Type == ovmf.KernelHashes && c.Hashes != nil:
			area, err := c.Hashes.Area(in.hashArea.Base%pageSize, s.Size)
			if err != nil {
				return nil, fmt.Errorf("section %d (KERNEL_HASHES): %w", i, err)
			}
			w.Data(gpa, area)
		case s.Type == ovmf.Secrets && s.Size == pageSize:
			w.Secrets(gpa)
		case s.Type == ovmf.CPUID && s.Size == pageSize:
			w.CPUID(gpa)
		case s.Type == ovmf.Secrets || s.Type == ovmf.CPUID:
			return nil, fmt.Errorf("%s section at %#x has %#x bytes, not a page", s.Type, gpa, s.Size)
		default:
			w.Zero(gpa, uint64(s.Size))
		}
	}
	return in.sections.Sections, nil
}

func disjoint(e []extent) error {
	slices.SortStableFunc(e, func(a, b extent) int {
		if a.start < b.start {
			return -1
		}
		if a.start > b.start {
			return 1
		}
		return 0
	})
	for i := 1; i < len(e); i++ {
		if e[i].start < e[i-1].end {
			return fmt.Errorf("%s overlaps %s at %#x", e[i].name, e[i-1].name, e[i].start)
		}
	}
	return nil
}
