// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
	"github.com/coco-shim/coco/measurement/tdx"
)

// Version of Expected's JSON form.
const Version = 1

// Expected has the values that the hardware will report of a VM. Digests are hexadecimal.
type Expected struct {
	Version  int    `json:"version"`
	Platform string `json:"platform"` // "snp" or "tdx"
	// Rehearsal says that the VM does not run on this platform: the digest is what it would have there, and
	// nothing vouches for it.
	Rehearsal bool   `json:"rehearsal,omitempty"`
	Algorithm string `json:"algorithm"` // of Digest
	Digest    string `json:"digest"`    // SNP's launch digest, TDX's MRTD

	VCPUs     int    `json:"vcpus"`
	CPUModel  string `json:"cpu_model,omitempty"` // measured on SNP
	MemoryMiB uint64 `json:"memory_mib"`          // not in Digest

	Firmware string `json:"firmware_sha256"`
	Kernel   string `json:"kernel_sha256"`
	Initrd   string `json:"initrd_sha256"`
	Cmdline  string `json:"cmdline_sha256"` // with its NUL, as SNP measures it

	HostData    string `json:"host_data"`               // HOSTDATA or MRCONFIGID
	Policy      string `json:"policy,omitempty"`        // SNP
	IDKeyDigest string `json:"id_key_digest,omitempty"` // SNP, of the anonymous ID block

	AuthorKeyDigest string `json:"author_key_digest,omitempty"` // SNP, where its ID block has one
}

// Expect computes the digest of a VM, and for SNP makes the anonymous ID block that pins it: its
// returned copy of the VM's SNP settings carries it, unless they have one already. For a VM from an
// IGVM file, which holds its own, there are no settings to return.
func Expect(v hypervisor.VMSpec, c Chain) (Expected, *hypervisor.SNP, error) {
	m, err := Describe(v, c)
	if err != nil {
		return Expected{}, nil, err
	}
	fw, cmdline := sha256.Sum256(c.Firmware), kernelhashes.Cmdline(v.Boot.Cmdline)
	e := Expected{
		Version: Version, Platform: string(v.TEE), Algorithm: "sha384", VCPUs: v.CPU.Count, CPUModel: v.CPU.Model,
		MemoryMiB: v.MemoryMiB,
		Firmware:  hex.EncodeToString(fw[:]), Kernel: hex.EncodeToString(c.Kernel[:]),
		Initrd:  hex.EncodeToString(c.Initrd[:]),
		Cmdline: hex.EncodeToString(cmdline[:]),
	}
	var pinned *hypervisor.SNP
	switch {
	case m.IGVM != nil:
		err = e.igvm(*m.IGVM, v.SNP)
	case m.SNP != nil:
		pinned, err = e.snp(*m.SNP, *v.SNP)
	default:
		var mrtd measurement.Digest
		mrtd, err = tdx.MRTD(m.TDX, tdx.SinglePass, nil, nil)
		e.Digest, e.HostData = mrtd.String(), hex.EncodeToString(v.TDX.MRConfigID[:])
	}
	return e, pinned, err
}

// igvm measures what Cloud Hypervisor launches. Policy and ID block are the file's.
func (e *Expected) igvm(l snp.IGVMLaunch, s *hypervisor.SNP) error {
	ld, err := snp.MeasureIGVM(l, nil)
	if err != nil {
		return err
	}
	e.Digest, e.HostData, e.Policy = ld.String(), hex.EncodeToString(s.HostData[:]), fmt.Sprintf("%#x", l.File.Policy)
	return nil
}

// snp measures what QEMU launches. s is a copy.
func (e *Expected) snp(d snp.Description, s hypervisor.SNP) (*hypervisor.SNP, error) {
	ld, err := snp.Measure(d, nil)
	if err != nil {
		return nil, err
	}
	e.Digest, e.HostData, e.Policy = ld.String(), hex.EncodeToString(s.HostData[:]), fmt.Sprintf("%#x", s.Policy)
	if len(s.IDBlock) == 0 && s.Pin != hypervisor.PinNone {
		if err := pin(&s, ld); err != nil {
			return nil, err
		}
	}
	if len(s.IDAuth) == idblock.AuthSize {
		e.IDKeyDigest = keyDigest(s.IDAuth[idblock.OffIDKey:])
		if s.IDAuth[idblock.OffAuthorAlgo] != idblock.AlgoNone {
			e.AuthorKeyDigest = keyDigest(s.IDAuth[idblock.OffAuthorKey:])
		}
	}
	return &s, nil
}

// keyDigest returns the digest by which a report names the key at the start of b.
func keyDigest(b []byte) string {
	sum := sha512.Sum384(b[:idblock.KeySize])
	return hex.EncodeToString(sum[:])
}

// pin makes the ID block of a launch digest.
func pin(s *hypervisor.SNP, ld measurement.Digest) error {
	block, err := idblock.New(ld, idblock.Policy(s.Policy))
	if err != nil {
		return err
	}
	sign := idblock.Anonymous
	if s.Pin == hypervisor.PinAuthor {
		sign = idblock.AnonymousWithAuthor
	}
	if s.IDAuth, err = sign(block); err != nil {
		return fmt.Errorf("id block: %w", err)
	}
	s.IDBlock = block.Marshal()
	return nil
}
