// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package snp computes the launch digest of AMD SEV-SNP virtual machines page by page, as the AMD
// firmware does while the VMM inserts the pages, from a firmware image or an IGVM file. It also computes
// the digests of SEV-ES and SEV for old evidence. With package idblock the AMD firmware itself checks the digest.
//
// A Description holds everything that is measured. Nothing else is: memory size, devices, MAC
// addresses and identifiers are not in the digest. Policy, HOSTDATA and the ID block are separate
// fields of the attestation report. Launches that QEMU or the AMD firmware would refuse are
// refused here too, with the reason, since no launch could have their digest.
package snp

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// Mode is the generation of memory encryption.
type Mode uint8

// The modes.
const (
	SNP Mode = iota // SEV-SNP: SHA-384 over pages
	ES              // SEV-ES: SHA-256 over firmware, hash table and processor states
	SEV             // SEV: SHA-256 over firmware and hash table
)

// String returns the mode's name as the command line uses it.
func (m Mode) String() string {
	return map[Mode]string{SNP: "snp", ES: "es", SEV: "sev"}[m]
}

// FeatureSNPActive is bit 0 of SEV_FEATURES; every SNP machine has it.
const FeatureSNPActive uint64 = 1

// MaxVCPUs is the largest number of processors a description may have (QEMU's q35).
const MaxVCPUs = 4096

// Metadata is what the digest needs of a firmware that is known only by its hash.
type Metadata struct {
	Sections     []ovmf.Section
	APEIP        uint32 // start address of application processors
	HashTableGPA uint32 // base of the kernel-hash area; 0 if the firmware has none
}

// Description is everything that goes into a launch digest.
type Description struct {
	Mode Mode
	VMM  VMM

	// Firmware is the image given to -bios. It may be nil for SNP if FirmwareHash and Metadata are given.
	Firmware []byte
	// FirmwareHash, if given, is the launch digest after the firmware's pages (see FirmwareHash);
	// the pages themselves are then not hashed. SNP only.
	FirmwareHash measurement.Digest
	// Metadata replaces the firmware's own tables where there is no Firmware.
	Metadata *Metadata

	// Kernel, if given, are the hashes of a measured direct boot (kernel-hashes=on).
	Kernel *kernelhashes.Hashes

	VCPUs     int
	Signature uint32 // of the processor model, see Signature and ModelSignature; EC2 and GCE ignore it
	Features  uint64 // SEV_FEATURES; QEMU 10.0-11.1 yield 1. Ignored by ES and SEV
}

// FirmwareHash returns the launch digest after the pages of a firmware image. It can seed later
// computations, so that the image is not needed any more.
func FirmwareHash(firmware []byte) (measurement.Digest, error) {
	im, err := parse(firmware)
	if err != nil {
		return nil, err
	}
	c := newChain(digest{}, nil)
	c.normal(im.GPA(), firmware, "", "")
	ld := c.ld()
	return ld[:], nil
}

// Measure returns the launch digest of a description: 48 bytes for SNP, 32 for the older modes. A
// trace that is not nil receives every step.
func Measure(d Description, t *measurement.Trace) (measurement.Digest, error) {
	if d.Mode != SNP {
		return measureLegacy(d, t)
	}
	p, err := prepare(d, t)
	if err != nil {
		return nil, fmt.Errorf("snp launch digest: %w", err)
	}
	out, err := p.digest(d.VCPUs, t)
	if err != nil {
		return nil, fmt.Errorf("snp launch digest: %w", err)
	}
	return out, nil
}

// Prepared is a launch that is measured up to and including its first processor. Digests for any
// number of processors follow in one small step per processor. It is immutable and safe for
// concurrent use.
type Prepared struct {
	one   digest  // launch digest with one processor
	ap    *digest // content of an application processor's page; nil if there is no start address
	apErr error
}

// Prepare measures everything but the application processors. The description's VCPUs is ignored.
func Prepare(d Description) (*Prepared, error) {
	if d.Mode != SNP {
		return nil, fmt.Errorf("prepare launch: mode %s has no incremental digest", d.Mode)
	}
	p, err := prepare(d, nil)
	if err != nil {
		return nil, fmt.Errorf("snp launch digest: %w", err)
	}
	return p, nil
}

// Digest returns the launch digest with the given number of processors.
func (p *Prepared) Digest(vcpus int) (measurement.Digest, error) {
	out, err := p.digest(vcpus, nil)
	if err != nil {
		return nil, fmt.Errorf("snp launch digest: %w", err)
	}
	return out, nil
}

func (p *Prepared) digest(vcpus int, t *measurement.Trace) (measurement.Digest, error) {
	if err := checkVCPUs(vcpus); err != nil {
		return nil, err
	}
	if vcpus == 1 {
		return p.one[:], nil
	}
	if p.ap == nil {
		return nil, p.apErr
	}
	return derive(p.one, p.ap, vcpus, t), nil
}

// Derive returns the digest for a number of processors from the digest for one of them, which may
// come from elsewhere. Only VMM, Signature, Features and the start address of application
// processors (Firmware or Metadata) of the description are used.
func Derive(one measurement.Digest, d Description, vcpus int) (measurement.Digest, error) {
	if len(one) != sha512.Size384 {
		return nil, fmt.Errorf("derive launch digest: the digest for one processor has %d bytes, not 48", len(one))
	}
	if err := checkVCPUs(vcpus); err != nil {
		return nil, err
	}
	if vcpus == 1 {
		return digestOf(digest(one)), nil
	}
	in, err := read(d)
	if err != nil {
		return nil, fmt.Errorf("derive launch digest: %w", err)
	}
	eip, err := in.eip()
	if err != nil {
		return nil, fmt.Errorf("derive launch digest: %w", err)
	}
	ap := sha512.Sum384(d.VMM.state(eip, d.Signature, d.Features).page()[:])
	return derive(digest(one), &ap, vcpus, nil), nil
}

func digestOf(d digest) measurement.Digest { return d[:] }

// derive adds the application processors, which are identical to each other.
func derive(one digest, ap *digest, vcpus int, t *measurement.Trace) measurement.Digest {
	c := newChain(one, t)
	for i := 1; i < vcpus; i++ {
		source := ""
		if t != nil {
			source = fmt.Sprintf("vcpu %d", i)
		}
		c.page(pageVMSA, vmsaGPA, ap, source, "application processor")
	}
	return digestOf(c.ld())
}

func checkVCPUs(n int) error {
	if n < 1 || n > MaxVCPUs {
		return fmt.Errorf("%d vcpus; the digest is defined for 1 to %d", n, MaxVCPUs)
	}
	return nil
}

var errNoFirmware = errors.New("no firmware: give the image, or its hash together with its metadata")
