// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/kernelhashes"
)

// Loader names whose rules turn an IGVM file into a launch digest. The digest depends on the loader
// as much as on the file.
type Loader uint8

// The known loaders.
const (
	// CloudHypervisorKVM is Cloud Hypervisor on KVM: pages without data are ZERO pages, processor
	// contexts become registers, and KVM measures its own rendering of them last. Computed by the
	// rule in its source; no published digest confirms it.
	CloudHypervisorKVM Loader = iota
	// IGVMMeasure is the igvmmeasure tool: file order, contexts in place, only the first page of a
	// parameter area, pages without data as NORMAL zero pages.
	IGVMMeasure
	// IGVMMeasureZero is igvmmeasure with pages without data as ZERO pages.
	IGVMMeasureZero
	// IGVMCrate is the igvm crate's own measurement: as igvmmeasure, but all pages of parameter areas.
	IGVMCrate
)

var loaderNames = []string{"clh-kvm", "igvmmeasure", "igvmmeasure-zero", "igvm-crate"}

// String returns the name that ParseLoader reads.
func (l Loader) String() string {
	if int(l) < len(loaderNames) {
		return loaderNames[l]
	}
	return fmt.Sprintf("loader %d", uint8(l))
}

// ParseLoader returns the loader of a name; the empty name is Cloud Hypervisor on KVM.
func ParseLoader(s string) (Loader, error) {
	if s == "" {
		return CloudHypervisorKVM, nil
	}
	if i := slices.Index(loaderNames, s); i >= 0 {
		return Loader(i), nil //nolint:gosec // a handful
	}
	return 0, fmt.Errorf("unknown loader %q; known are %s", s, strings.Join(loaderNames, ", "))
}

// IGVMLaunch is the launch of an IGVM file.
type IGVMLaunch struct {
	File   *igvm.File
	Loader Loader
	VCPUs  int                  // processors of the VM; only Cloud Hypervisor's digest depends on it
	Kernel *kernelhashes.Hashes // a kernel given through fw_cfg; Cloud Hypervisor only
}

// Cloud Hypervisor places the kernel hashes at a fixed address (its vmm/src/sev.rs).
const (
	clhHashPage   = 0x10000
	clhHashOffset = 0xc00
	clhHashSize   = 0x400
)

// MeasureIGVM returns the SEV-SNP launch digest of an IGVM file.
func MeasureIGVM(l IGVMLaunch, t *measurement.Trace) (measurement.Digest, error) {
	d, err := measureIGVM(l, t)
	if err != nil {
		return nil, fmt.Errorf("igvm launch digest by %s: %w", l.Loader, err)
	}
	return d, nil
}

func measureIGVM(l IGVMLaunch, t *measurement.Trace) (measurement.Digest, error) {
	mask, ok := l.File.HasPlatform(igvm.SEVSNP)
	if !ok {
		return nil, errors.New("the file is not for SEV-SNP")
	}
	clh := l.Loader == CloudHypervisorKVM
	if clh {
		if err := checkVCPUs(l.VCPUs); err != nil {
			return nil, err
		}
	} else if l.Kernel != nil {
		return nil, errors.New("a kernel beside the file is measured by Cloud Hypervisor only")
	}
	r := igvmRun{
		IGVMLaunch: l, chain: newChain(digest{}, t), areas: map[uint32]uint64{},
		contexts: map[uint16][]byte{}, clh: clh,
	}
	for i, d := range l.File.For(mask) {
		if err := r.directive(i, d); err != nil {
			return nil, fmt.Errorf("directive %d (%s at %#x): %w", i, d.Type, d.GPA, err)
		}
	}
	if clh {
		if err := r.finish(); err != nil {
			return nil, err
		}
	}
	return digestOf(r.chain.ld()), nil
}

// maxParameters bounds the parameter areas together, of which a small file can declare many: each page is a step of the
// launch. Real ones have some pages.
const maxParameters = 1 << 28

// igvmRun is the state of a launch while its directives are carried out.
type igvmRun struct {
	IGVMLaunch
	chain    *chain
	areas    map[uint32]uint64 // sizes of parameter areas that are declared and not yet inserted
	inserted uint64            // bytes of those that are
	contexts map[uint16][]byte
	hashed   bool // the page with the kernel hashes is measured
	clh      bool
}

func (r *igvmRun) directive(i int, d igvm.Directive) error {
	source := fmt.Sprintf("directive %d", i)
	switch d.Type {
	case igvm.ParameterArea:
		if _, ok := r.areas[d.Index]; ok {
			return fmt.Errorf("parameter area %d is declared twice", d.Index)
		}
		r.areas[d.Index] = d.Size
	case igvm.ParameterInsert:
		return r.insert(source, d)
	case igvm.PageData:
		return r.page(source, d)
	case igvm.VPContext:
		return r.context(source, d)
	case igvm.MMIORanges, igvm.SRAT, igvm.MADT, igvm.SLIT, igvm.PPTT, igvm.DeviceTree, igvm.EnvironmentInfo,
		igvm.ErrorRange:
		if r.clh {
			return errors.New("not supported by Cloud Hypervisor")
		}
	}
	return nil
}

func (r *igvmRun) insert(source string, d igvm.Directive) error {
	size, ok := r.areas[d.Index]
	if !ok {
		return fmt.Errorf("parameter area %d is not declared, or inserted already", d.Index)
	}
	delete(r.areas, d.Index)
	if r.Kernel != nil && d.GPA < clhHashPage+pageSize && clhHashPage < d.GPA+size {
		return errors.New("an unmeasured parameter area lies over the kernel hashes")
	}
	if r.Loader == IGVMMeasure || r.Loader == IGVMMeasureZero {
		size = pageSize
	}
	if r.inserted += size; r.inserted > maxParameters {
		return fmt.Errorf("parameter areas of more than %d bytes in all", uint64(maxParameters))
	}
	r.chain.blank(pageUnmeasured, d.GPA, size, source, "parameters")
	return nil
}

func (r *igvmRun) page(source string, d igvm.Directive) error {
	if d.Flags&igvm.FlagShared != 0 {
		if r.clh {
			return errors.New("shared pages are unknown to Cloud Hypervisor, which would measure this one")
		}
		return nil
	}
	hashes := r.Kernel != nil && d.GPA == clhHashPage
	switch d.DataType {
	case igvm.SecretsPage:
		if hashes {
			return errors.New("the secrets page lies over the kernel hashes")
		}
		r.chain.blank(pageSecrets, d.GPA, pageSize, source, "secrets")
	case igvm.CPUIDPage, igvm.CPUIDXFPage:
		if r.clh && d.DataType == igvm.CPUIDXFPage {
			return errors.New("pages of type CPUID_XF are not supported by Cloud Hypervisor")
		}
		if hashes {
			return errors.New("the CPUID page lies over the kernel hashes")
		}
		r.chain.blank(pageCPUID, d.GPA, pageSize, source, "cpuid")
	default:
		if hashes && r.hashed {
			return errors.New("a second page lies over the kernel hashes")
		}
		if hashes {
			r.hashPage(source, d.Data)
			return nil
		}
		r.normal(source, d)
	}
	return nil
}

// normal measures a page that is neither shared nor filled by anyone.
func (r *igvmRun) normal(source string, d igvm.Directive) {
	zero := r.Loader == CloudHypervisorKVM || r.Loader == IGVMMeasureZero
	switch {
	case d.Flags&igvm.FlagUnmeasured != 0:
		r.chain.blank(pageUnmeasured, d.GPA, pageSize, source, "")
	case d.Data == nil && zero:
		r.chain.blank(pageZero, d.GPA, pageSize, source, "no data in the file")
	case d.Data == nil:
		r.chain.normal(d.GPA, make([]byte, pageSize), source, "no data in the file")
	default:
		r.chain.normal(d.GPA, d.Data, source, "")
	}
}

// hashPage measures the page with the kernel hashes, merged into what the file has there.
func (r *igvmRun) hashPage(source string, data []byte) {
	page := make([]byte, pageSize)
	copy(page, data)
	clear(page[clhHashOffset : clhHashOffset+clhHashSize])
	table := r.Kernel.Table()
	copy(page[clhHashOffset:], table[:])
	r.chain.normal(clhHashPage, page, source, "hashes of kernel, initrd and command line")
	r.hashed = true
}

func (r *igvmRun) context(source string, d igvm.Directive) error {
	if !r.clh {
		content := sha512.Sum384(d.Data)
		r.chain.page(pageVMSA, d.GPA, &content, source, fmt.Sprintf("context of processor %d", d.VP))
		return nil
	}
	if _, ok := r.contexts[d.VP]; ok {
		return fmt.Errorf("a second context for processor %d", d.VP)
	}
	r.contexts[d.VP] = d.Data
	return nil
}

// finish measures what Cloud Hypervisor and KVM add after the directives.
func (r *igvmRun) finish() error {
	if r.Kernel != nil && !r.hashed {
		r.hashPage("kernel hashes", nil)
	}
	features := FeatureSNPActive
	if c, ok := r.contexts[0]; ok {
		features |= vmsaFeatures(c)
	}
	untouched := sha512.Sum384(kvmResetPage(features)[:])
	for i := range r.VCPUs {
		content, note := untouched, "never touched by the VMM"
		if c, ok := r.contexts[uint16(i)]; ok {
			p, err := kvmPage(c, features)
			if err != nil {
				return fmt.Errorf("context of processor %d: %w", i, err)
			}
			content, note = sha512.Sum384(p[:]), "registers from the file's context"
		}
		r.chain.page(pageVMSA, vmsaGPA, &content, fmt.Sprintf("vcpu %d", i), note)
	}
	return nil
}
