// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/snp"
)

// isIGVM tells whether firmware is an IGVM file, which Cloud Hypervisor launches by a rule of its own.
func isIGVM(firmware []byte) bool { return bytes.HasPrefix(firmware, []byte("IGVM")) }

// igvm measures what Cloud Hypervisor launches from an IGVM file with a kernel beside it. Policy and ID
// block are the file's.
func (l *Launch) igvm(spec hypervisor.VMSpec, c Chain, cmdline [sha256.Size]byte) error {
	f, err := igvm.Parse(c.Firmware)
	if err != nil {
		return fmt.Errorf("firmware: %w", err)
	}
	ld, err := snp.MeasureIGVM(snp.IGVMLaunch{
		File: f, Loader: snp.CloudHypervisorKVM, VCPUs: spec.CPU.Count,
		Kernel: &kernelhashes.Hashes{Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: cmdline},
	}, nil)
	if err != nil {
		return err
	}
	l.Digest, l.HostData, l.Policy = ld.String(), hex.EncodeToString(spec.SNP.HostData[:]), fmt.Sprintf("%#x", f.Policy)
	return nil
}
