// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sev has the commands that compute launch digests of AMD SEV, SEV-ES and SEV-SNP: coco measure snp and igvm.
package sev

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/snp"
)

// Options are the flags of coco measure snp.
type Options struct {
	report.Form
	boot                       input.Boot
	firmware, hash, metadata   string
	vcpus, Model, sig          string
	family, cpuModel, stepping uint32
	features, VMM, Mode        string
	svsm, varsFile             string
	varsSize                   uint64
	id                         idOptions
}

// Command returns coco measure snp.
func Command() *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "snp",
		Short: "Launch digest of an AMD SEV-SNP (SEV-ES, SEV) VM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			results, err := o.run(cmd)
			if err != nil {
				return fmt.Errorf("measure snp: %w", err)
			}
			return o.Print(cmd, results)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.firmware, "firmware", "", "firmware image, as given to -bios")
	f.StringVar(&o.hash, "firmware-hash", "",
		"digest of the firmware's pages (see --mode ovmf-hash); then --metadata can stand for --firmware")
	f.StringVar(&o.metadata, "metadata", "",
		"JSON file with ovmf_sections, ap_eip and hash_table_gpa of a firmware known by its hash")
	f.StringVar(&o.boot.Kernel, "kernel", "", "kernel of a measured direct boot (kernel-hashes=on)")
	f.StringVar(&o.boot.Initrd, "initrd", "", "initrd of the direct boot")
	f.StringVar(&o.boot.Cmdline, "append", "", "kernel command line; every byte counts")
	o.boot.SumFlags(cmd)
	f.StringVar(&o.vcpus, "vcpus", "", "number of vCPUs; several (1,2,4-8) give a digest each")
	f.StringVar(&o.Model, "cpu-model", "", "QEMU's name of the vCPU model, such as EPYC-v4")
	f.StringVar(&o.sig, "vcpu-sig", "", "signature of the vCPU (CPUID 1 EAX) instead of a model")
	f.Uint32Var(&o.family, "vcpu-family", 0, "family, with --vcpu-model and --vcpu-stepping instead of a model")
	f.Uint32Var(&o.cpuModel, "vcpu-model", 0, "model number, see --vcpu-family")
	f.Uint32Var(&o.stepping, "vcpu-stepping", 0, "stepping, see --vcpu-family")
	f.StringVar(&o.features, "features", "0x1", "SEV_FEATURES of the guest")
	f.StringVar(&o.VMM, "vmm", "qemu", "hypervisor: qemu, qemu-legacy, ec2, ec2-2023, gce")
	f.StringVar(&o.Mode, "mode", "snp",
		"snp, es or sev; svsm for SNP with an SVSM; ovmf-hash for the firmware's part alone")
	f.StringVar(&o.svsm, "svsm", "", "with --mode svsm: the SVSM's image")
	f.Uint64Var(&o.varsSize, "vars-size", 0,
		"with --mode svsm: bytes of the firmware's store of variables, which lies between SVSM and firmware")
	f.StringVar(&o.varsFile, "vars-file", "", "with --mode svsm: the store of variables, instead of its size")
	o.Form.Flags(cmd)
	o.id.flags(cmd)
	return cmd
}

func (o *Options) run(cmd *cobra.Command) ([]report.Result, error) {
	empty := input.NoEmpty(cmd,
		"firmware", "firmware-hash", "metadata", "kernel", "initrd", "kernel-sha256", "initrd-sha256")
	if err := errors.Join(o.Check(), empty, o.boot.Check()); err != nil {
		return nil, err
	}
	if o.Mode == "ovmf-hash" {
		return o.firmwareHash()
	}
	d, counts, err := o.describe(cmd)
	if err != nil {
		return nil, err
	}
	if o.Mode == "svsm" {
		return o.measureSVSM(d, counts)
	}
	if err := o.load(&d); err != nil {
		return nil, err
	}
	if d.VMM == snp.QEMU || d.VMM == snp.QEMULegacy {
		o.boot.Notes(cmd)
	}
	return o.Measure(d, counts)
}

func (o *Options) firmwareHash() ([]report.Result, error) {
	if o.firmware == "" {
		return nil, errors.New("--mode ovmf-hash wants --firmware")
	}
	fw, err := input.ReadLimited(o.firmware, input.MaxFirmware)
	if err != nil {
		return nil, err
	}
	h, err := snp.FirmwareHash(fw)
	if err != nil {
		return nil, err
	}
	return []report.Result{&Result{Platform: "snp", Mode: o.Mode, Measurement: h}}, nil
}

// describe turns the flags that need no file into a description.
func (o *Options) describe(cmd *cobra.Command) (d snp.Description, counts []int, err error) {
	mode, ok := map[string]snp.Mode{"snp": snp.SNP, "es": snp.ES, "sev": snp.SEV, "svsm": snp.SNP}[o.Mode]
	if !ok {
		return d, nil, fmt.Errorf("--mode %q: known are snp, es, sev, svsm, ovmf-hash", o.Mode)
	}
	if o.Mode != "svsm" && (o.svsm != "" || cmd.Flags().Changed("vars-size") || o.varsFile != "") {
		return d, nil, errors.New("--svsm, --vars-size and --vars-file want --mode svsm")
	}
	if o.Mode == "svsm" {
		if err := o.checkSVSM(cmd); err != nil {
			return d, nil, err
		}
	}
	d.Mode = mode
	if d.VMM, err = snp.ParseVMM(o.VMM); err != nil {
		return d, nil, fmt.Errorf("--vmm: %w", err)
	}
	if d.Features, err = strconv.ParseUint(o.features, 0, 64); err != nil {
		return d, nil, fmt.Errorf("--features %q is not a 64-bit number", o.features)
	}
	if o.hash != "" {
		if d.FirmwareHash, err = measurement.ParseDigest(strings.ToLower(o.hash)); err != nil {
			return d, nil, fmt.Errorf("--firmware-hash: %w", err)
		}
	}
	if counts, err = parseCounts(o.vcpus); err != nil && (mode != snp.SEV || o.vcpus != "") {
		return d, nil, fmt.Errorf("--vcpus: %w", err)
	}
	if mode == snp.SEV {
		counts = []int{1} // processors are not measured
	}
	d.Signature, err = o.signature(cmd, d)
	return d, counts, err
}

// signature returns the vCPU's signature from whichever flag gives it.
func (o *Options) signature(cmd *cobra.Command, d snp.Description) (uint32, error) {
	changed := cmd.Flags().Changed
	parts := changed("vcpu-family") || changed("vcpu-model") || changed("vcpu-stepping")
	given := 0
	for _, b := range []bool{changed("cpu-model"), changed("vcpu-sig"), parts} {
		if b {
			given++
		}
	}
	switch {
	case given > 1:
		return 0, errors.New("give one of --cpu-model, --vcpu-sig and --vcpu-family with its companions")
	case changed("cpu-model"):
		s, err := snp.ModelSignature(o.Model)
		if err != nil {
			return 0, fmt.Errorf("--cpu-model: %w", err)
		}
		return s, nil
	case changed("vcpu-sig"):
		s, err := strconv.ParseUint(o.sig, 0, 32)
		if err != nil {
			return 0, fmt.Errorf("--vcpu-sig %q is not a 32-bit number", o.sig)
		}
		return uint32(s), nil
	case parts && !changed("vcpu-family"):
		return 0, errors.New("--vcpu-model and --vcpu-stepping want --vcpu-family")
	case parts:
		return snp.Signature(o.family, o.cpuModel, o.stepping)
	}
	if d.Mode == snp.SEV || d.VMM != snp.QEMU && d.VMM != snp.QEMULegacy {
		return 0, nil // not measured
	}
	return 0, errors.New("give --cpu-model (such as EPYC-v4) or --vcpu-sig: under QEMU the digest depends on it")
}

// parseCounts reads a list of counts and ranges.
func parseCounts(s string) ([]int, error) {
	if s == "" {
		return nil, errors.New("give the number of vCPUs: the digest depends on it")
	}
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 1 || b < a || b > snp.MaxVCPUs {
			return nil, fmt.Errorf("%q is not a count or range between 1 and %d", part, snp.MaxVCPUs)
		}
		for n := a; n <= b; n++ {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// load reads the files into a description, kernel and initrd beside the firmware.
func (o *Options) load(d *snp.Description) error {
	var g errgroup.Group
	hashes := o.boot.Hash(&g)
	err := o.loadFirmware(d)
	if err := errors.Join(err, g.Wait()); err != nil {
		return err
	}
	d.Kernel = hashes()
	return nil
}

func (o *Options) loadFirmware(d *snp.Description) (err error) {
	if o.metadata != "" {
		if d.Metadata, err = readMetadata(o.metadata, d); err != nil {
			return err
		}
	}
	if o.firmware == "" {
		if d.Metadata == nil {
			return errors.New("give --firmware, or --firmware-hash with --metadata")
		}
		return nil
	}
	if d.Metadata != nil {
		return errors.New("give --firmware or --metadata, not both: an image has its own metadata")
	}
	d.Firmware, err = input.ReadLimited(o.firmware, input.MaxFirmware)
	return err
}

// metadataFile is what a file for --metadata holds. A section's fields have no defaults: 0 is an address and,
// to QEMU, a type.
type metadataFile struct {
	Sections []struct {
		GPA  *uint32 `json:"gpa"`
		Size *uint32 `json:"size"`
		Type *uint32 `json:"type"`
	} `json:"ovmf_sections"`
	APEIP        uint32 `json:"ap_eip"`
	HashTableGPA uint32 `json:"hash_table_gpa"`
	Hash         string `json:"ovmf_hash"`
}

// strict decodes a JSON object, all of whose keys must be known.
func strict(raw []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// readMetadata reads what is needed of a firmware known by its hash. The file may carry the hash too.
func readMetadata(path string, d *snp.Description) (*snp.Metadata, error) {
	raw, err := input.ReadLimited(path, 1<<20)
	if err != nil {
		return nil, err
	}
	var doc metadataFile
	if err := strict(raw, &doc); err != nil {
		return nil, fmt.Errorf("--metadata %s: %w", path, err)
	}
	if len(doc.Sections) == 0 {
		return nil, fmt.Errorf("--metadata %s: no ovmf_sections", path)
	}
	if doc.Hash != "" {
		h, err := hex.DecodeString(doc.Hash)
		if err != nil {
			return nil, fmt.Errorf("--metadata %s: ovmf_hash is not hexadecimal", path)
		}
		if d.FirmwareHash != nil && !d.FirmwareHash.Equal(h) {
			return nil, fmt.Errorf("--metadata %s: its ovmf_hash is not that of --firmware-hash", path)
		}
		d.FirmwareHash = h
	}
	if d.FirmwareHash == nil {
		return nil, fmt.Errorf("--metadata %s: the firmware's pages are unknown without --firmware-hash", path)
	}
	m := &snp.Metadata{APEIP: doc.APEIP, HashTableGPA: doc.HashTableGPA}
	for i, s := range doc.Sections {
		switch {
		case s.GPA == nil:
			return nil, fmt.Errorf("--metadata %s: section %d has no gpa", path, i)
		case s.Size == nil:
			return nil, fmt.Errorf("--metadata %s: section %d has no size", path, i)
		case s.Type == nil:
			return nil, fmt.Errorf("--metadata %s: section %d has no type", path, i)
		}
		m.Sections = append(m.Sections, ovmf.Section{GPA: *s.GPA, Size: *s.Size, Type: ovmf.SectionType(*s.Type)})
	}
	return m, nil
}
