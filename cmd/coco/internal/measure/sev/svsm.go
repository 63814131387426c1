// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sev

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp"
)

// maxSVSM is far above any real image.
const maxSVSM = 64 << 20

// checkSVSM refuses flags that say nothing of a launch with an SVSM.
func (o *Options) checkSVSM(cmd *cobra.Command) error {
	switch {
	case o.svsm == "" || o.firmware == "":
		return errors.New("--mode svsm wants --svsm and --firmware")
	case o.hash != "" || o.metadata != "":
		return errors.New("--mode svsm goes without --firmware-hash and --metadata")
	case o.boot.HasKernel():
		return errors.New("--mode svsm goes without --kernel: an SVSM does not pass kernel hashes on")
	case o.VMM != "qemu":
		return fmt.Errorf("--mode svsm is known of QEMU, not of %s", o.VMM)
	case cmd.Flags().Changed("vars-size") == (o.varsFile != ""):
		return errors.New("--mode svsm wants --vars-size or --vars-file: the store of variables moves the SVSM")
	}
	return nil
}

// measureSVSM computes digests of launches with an SVSM.
func (o *Options) measureSVSM(d snp.Description, counts []int) (out []report.Result, err error) {
	l := snp.SVSMLaunch{VarsSize: o.varsSize, Signature: d.Signature, Features: d.Features}
	if l.Firmware, err = input.ReadLimited(o.firmware, input.MaxFirmware); err != nil {
		return nil, err
	}
	if l.SVSM, err = input.ReadLimited(o.svsm, maxSVSM); err != nil {
		return nil, err
	}
	if o.varsFile != "" {
		st, err := os.Stat(o.varsFile)
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("--vars-file %s is not a file", o.varsFile)
		}
		l.VarsSize = uint64(st.Size()) //nolint:gosec // of a file
	}
	for _, n := range counts {
		r := &Result{
			Platform: "snp", Mode: o.Mode, VMM: o.VMM, VCPUs: n, CPUModel: o.Model,
			CPUSignature: fmt.Sprintf("%#x", d.Signature), Features: fmt.Sprintf("%#x", d.Features),
		}
		if o.Explain {
			r.Trace = &measurement.Trace{}
		}
		l.VCPUs = n
		if r.Measurement, err = snp.MeasureSVSM(l, r.Trace); err != nil {
			return nil, err
		}
		if r.ID, err = o.id.make(r.Measurement); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
