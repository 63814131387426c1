// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// measureLegacy computes what LAUNCH_MEASURE reports under SEV and SEV-ES, before the firmware's
// HMAC: one SHA-256 over everything that was encrypted into the guest.
func measureLegacy(d Description, t *measurement.Trace) (measurement.Digest, error) {
	out, err := legacy(d, t)
	if err != nil {
		return nil, fmt.Errorf("%s launch digest: %w", d.Mode, err)
	}
	return out, nil
}

func legacy(d Description, t *measurement.Trace) (measurement.Digest, error) {
	switch {
	case d.Mode != ES && d.Mode != SEV:
		return nil, fmt.Errorf("unknown mode %d", d.Mode)
	case d.FirmwareHash != nil || d.Metadata != nil:
		return nil, errors.New("a firmware hash or metadata can stand for the firmware only under SNP")
	case d.Firmware == nil:
		return nil, errors.New("no firmware")
	}
	im, err := parse(d.Firmware)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	add := func(source, kind string, gpa uint64, b []byte) {
		h.Write(b)
		if t != nil {
			content := sha256.Sum256(b)
			t.Add(measurement.Step{
				Register: "launch", Source: source, Kind: kind, GPA: gpa, Size: uint64(len(b)),
				Content: content[:],
			})
		}
	}
	add("firmware", "DATA", im.GPA(), d.Firmware)
	if d.Kernel != nil {
		area, err := legacyHashArea(im)
		if err != nil {
			return nil, fmt.Errorf("a kernel is given, but it could not be measured: %w", err)
		}
		table := d.Kernel.Table()
		add("kernel hashes", "DATA", uint64(area.Base), table[:])
	}
	if d.Mode == ES {
		if err := legacyProcessors(d, im, add); err != nil {
			return nil, err
		}
	}
	out := measurement.Digest(h.Sum(nil))
	t.Add(measurement.Step{Register: "launch", Source: "end", Kind: "FINISH", After: out})
	return out, nil
}

func legacyHashArea(im *ovmf.Image) (ovmf.Area, error) {
	a, err := im.HashArea()
	if err == nil && a.Size < kernelhashes.TableSize {
		err = fmt.Errorf("firmware's kernel-hash area has %d bytes, less than the table's %d", a.Size, kernelhashes.TableSize)
	}
	return a, err
}

func legacyProcessors(d Description, im *ovmf.Image, add func(source, kind string, gpa uint64, b []byte)) error {
	if err := checkVCPUs(d.VCPUs); err != nil {
		return err
	}
	eip, err := im.ResetEIP()
	if err != nil && (d.VCPUs > 1 || d.VMM.qemu()) {
		return err
	}
	ap := d.VMM.state(eip, d.Signature, 0).page()
	add("vcpu 0", "VMSA", vmsaGPA, d.VMM.state(bspEIP, d.Signature, 0).page()[:])
	for i := 1; i < d.VCPUs; i++ {
		add(fmt.Sprintf("vcpu %d", i), "VMSA", vmsaGPA, ap[:])
	}
	return nil
}
