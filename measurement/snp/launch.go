// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// input is a description after its firmware was read: the parts that the launch needs, from an image or metadata only.
type input struct {
	image    *ovmf.Image // nil with metadata only
	sections *ovmf.SEVMetadata
	apEIP    uint32 // 0 with eipErr
	eipErr   error
	hashArea ovmf.Area // zero with hashErr; the size is 0 where it is unknown
	hashErr  error
}

func (in *input) eip() (uint32, error) { return in.apEIP, in.eipErr }

func read(d Description) (*input, error) {
	switch {
	case d.Firmware != nil && d.Metadata != nil:
		return nil, errors.New("both a firmware image and metadata are given; the image has its own")
	case d.Firmware != nil:
		return readImage(d.Firmware)
	case d.Metadata != nil && d.FirmwareHash != nil:
		return readMetadata(d.Metadata)
	}
	return nil, errNoFirmware
}

// parse reads an image for a machine with SEV of any kind. QEMU reads the metadata of all of them,
// though only SNP uses it, and trusts the lengths in it.
func parse(fw []byte) (*ovmf.Image, error) {
	im, err := ovmf.Parse(fw)
	if err != nil {
		return nil, err
	}
	if _, err := im.SEV(); err != nil && !errors.Is(err, ovmf.ErrAbsent) {
		return nil, err
	}
	return im, nil
}

func readImage(fw []byte) (*input, error) {
	im, err := ovmf.Parse(fw)
	if err != nil {
		return nil, err
	}
	m, err := im.SEV()
	if err != nil {
		return nil, err
	}
	if err := m.Check(len(fw)); err != nil {
		return nil, fmt.Errorf("firmware's SEV metadata: %w", err)
	}
	in := &input{image: im, sections: m}
	in.apEIP, in.eipErr = im.ResetEIP()
	in.hashArea, in.hashErr = im.HashArea()
	if in.hashErr == nil && in.hashArea.Size < kernelhashes.TableSize {
		in.hashErr = fmt.Errorf("firmware's kernel-hash area has %d bytes, less than the table's %d", in.hashArea.Size,
			kernelhashes.TableSize)
	}
	return in, nil
}

func readMetadata(m *Metadata) (*input, error) {
	if m.Sections == nil {
		return nil, errors.New("metadata without a list of sections")
	}
	s := &ovmf.SEVMetadata{Sections: m.Sections}
	if err := s.Check(0); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	in := &input{sections: s, apEIP: m.APEIP, hashArea: ovmf.Area{Base: m.HashTableGPA}}
	if m.APEIP == 0 {
		in.eipErr = errors.New("metadata gives no start address of application processors (ap_eip)")
	}
	if m.HashTableGPA == 0 {
		in.hashErr = errors.New("metadata gives no address of a kernel-hash table (hash_table_gpa)")
	}
	return in, nil
}

// prepare measures firmware, sections and the first processor.
func prepare(d Description, t *measurement.Trace) (*Prepared, error) {
	if d.Features&FeatureSNPActive == 0 {
		return nil, fmt.Errorf("guest features %#x lack bit 0 (SNPActive), which every SNP machine has", d.Features)
	}
	in, err := read(d)
	if err != nil {
		return nil, err
	}
	if in.eipErr != nil && in.image != nil && d.VMM.qemu() {
		return nil, in.eipErr // QEMU refuses such an image even for one processor
	}
	c, err := start(d, in, t)
	if err != nil {
		return nil, err
	}
	if err := c.sections(d, in); err != nil {
		return nil, err
	}
	bsp := sha512.Sum384(d.VMM.state(bspEIP, d.Signature, d.Features).page()[:])
	c.page(pageVMSA, vmsaGPA, &bsp, "vcpu 0", "boot processor")
	p := &Prepared{one: c.ld(), apErr: in.eipErr}
	if in.eipErr == nil {
		ap := sha512.Sum384(d.VMM.state(in.apEIP, d.Signature, d.Features).page()[:])
		p.ap = &ap
	}
	return p, nil
}

// start begins the chain with the firmware's pages, or with a digest that stands for them.
func start(d Description, in *input, t *measurement.Trace) (*chain, error) {
	if d.FirmwareHash == nil {
		c := newChain(digest{}, t)
		c.normal(in.image.GPA(), in.image.Data(), "firmware", "")
		return c, nil
	}
	if len(d.FirmwareHash) != sha512.Size384 {
		return nil, fmt.Errorf("firmware hash has %d bytes, not 48", len(d.FirmwareHash))
	}
	t.Add(measurement.Step{
		Register: "launch", Source: "firmware", Kind: "SEED", After: d.FirmwareHash,
		Note: "stands for all pages of the firmware",
	})
	return newChain(digest(d.FirmwareHash), t), nil
}

// sections adds the metadata's sections in table order; EC2 leaves the CPUID pages for the end.
func (c *chain) sections(d Description, in *input) error {
	if err := checkHashSections(d, in); err != nil {
		return err
	}
	for _, late := range []bool{false, true} {
		for i, s := range in.sections.Sections {
			if (d.VMM.ec2() && s.Type == ovmf.CPUID) != late {
				continue
			}
			source := fmt.Sprintf("section %d", i)
			if s.Type == ovmf.KernelHashes && d.Kernel != nil {
				if err := c.hashes(d.Kernel, in.hashArea.Base%pageSize, s, source); err != nil {
					return err
				}
				continue
			}
			pt, err := d.VMM.sectionType(s.Type)
			if err != nil {
				return err
			}
			c.blank(pt, uint64(s.GPA), uint64(s.Size), source, s.Type.String())
		}
	}
	return nil
}

// hashes adds a kernel-hash section. The table begins in its first page and ends at latest in its
// second. The following zeros are measured too, but need no memory.
func (c *chain) hashes(h *kernelhashes.Hashes, offset uint32, s ovmf.Section, source string) error {
	head, err := h.Area(offset, min(s.Size, 2*pageSize))
	if err != nil {
		return fmt.Errorf("%s (KERNEL_HASHES): %w", source, err)
	}
	const note = "hashes of kernel, initrd and command line"
	c.normal(uint64(s.GPA), head, source, note)
	var zeros [pageSize]byte
	empty := sha512.Sum384(zeros[:])
	for off := uint64(len(head)); off < uint64(s.Size); off += pageSize {
		c.page(pageNormal, uint64(s.GPA)+off, &empty, source, note)
	}
	return nil
}

// checkHashSections returns why a kernel could not be measured, nil without a kernel. The firmware's
// table says where it looks for the hashes, its metadata which pages are launched with them: one of these
// must be the page where it looks. QEMU writes the table into further sections of the type too, which
// nobody reads. Where only metadata is given, the page is not compared: QEMU does not either, and there is
// no firmware that would look.
func checkHashSections(d Description, in *input) error {
	if d.Kernel == nil {
		return nil
	}
	if in.hashErr != nil {
		return fmt.Errorf("a kernel is given, but it could not be measured: %w", in.hashErr)
	}
	var elsewhere error
	found := false
	for i, s := range in.sections.Sections {
		if s.Type != ovmf.KernelHashes {
			continue
		}
		if page := in.hashArea.Base &^ (pageSize - 1); page == s.GPA || in.image == nil {
			found = true
		} else {
			elsewhere = fmt.Errorf("firmware looks for kernel hashes in page %#x, but section %d (KERNEL_HASHES) is at %#x",
				page, i, s.GPA)
		}
		if offset := in.hashArea.Base % pageSize; uint64(offset)+kernelhashes.TableSize > uint64(s.Size) {
			return fmt.Errorf("section %d (KERNEL_HASHES) of %#x bytes has no room for the table at offset %#x", i,
				s.Size, offset)
		}
	}
	switch {
	case found:
		return nil
	case elsewhere != nil:
		return elsewhere
	}
	return errors.New("a kernel is given, but the firmware's metadata has no KERNEL_HASHES section, so it would boot " +
		"unmeasured")
}
