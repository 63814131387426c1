// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"errors"
	"fmt"
)

const hashTable = 176 // package kernelhashes: the padded table

// SNPLaunchProblem returns why QEMU could not launch an SNP machine with the image, or would start the
// kernel of a direct boot unmeasured, or nil. Package snp refuses to measure the same images; a test there
// holds both together.
func (im *Image) SNPLaunchProblem(directBoot bool) error {
	if err := im.LaunchProblem(); err != nil {
		return err
	}
	m, err := im.SEV()
	if err != nil {
		return err
	}
	if err := m.Check(len(im.data)); err != nil {
		return fmt.Errorf("firmware's SEV metadata: %w", err)
	}
	if _, err := im.ResetEIP(); err != nil {
		return err
	}
	if !directBoot {
		return nil
	}
	area, err := im.HashArea()
	if err != nil {
		return fmt.Errorf("a kernel could not be measured: %w", err)
	}
	return m.hashProblem(area)
}

// TDXLaunchProblem returns why QEMU could not launch a TD with the image, or nil.
func (im *Image) TDXLaunchProblem() error {
	if err := im.LaunchProblem(); err != nil {
		return err
	}
	_, err := im.TDX()
	return err
}

// hashProblem returns why a table of kernel hashes in the area would not be launched, or nil.
func (m *SEVMetadata) hashProblem(area Area) error {
	if area.Size < hashTable {
		return fmt.Errorf("kernel-hash area has %d bytes, less than the table's %d", area.Size, hashTable)
	}
	var elsewhere error
	found := false
	for i, s := range m.Sections {
		if s.Type != KernelHashes {
			continue
		}
		if page := area.Base &^ (pageSize - 1); page == s.GPA {
			found = true
		} else {
			elsewhere = fmt.Errorf("firmware looks for kernel hashes in page %#x, but section %d (KERNEL_HASHES) is at %#x",
				page, i, s.GPA)
		}
		if offset := area.Base % pageSize; uint64(offset)+hashTable > uint64(s.Size) {
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
	return errors.New("metadata has no KERNEL_HASHES section, so a kernel would boot unmeasured")
}
