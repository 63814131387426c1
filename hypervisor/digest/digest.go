// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package digest says what the hardware will report for a VM, from the very VMSpec that it is launched
// from: the launch digest, and for SNP an anonymous ID block that makes the AMD firmware refuse any
// other. Files are read through the descriptors that the VMM gets; their offsets stay where they are.
package digest

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
	"github.com/coco-shim/coco/measurement/tdx"
)

// maxFirmware is far above any real image; QEMU's own limit is lower.
const maxFirmware = 64 << 20

// Chain is a boot chain that was read.
type Chain struct {
	Firmware []byte
	Kernel   [sha256.Size]byte
	Initrd   [sha256.Size]byte // of nothing, if there is none
}

// Read reads the firmware and hashes kernel and initrd, all at once and in constant memory but for the
// firmware.
func Read(ctx context.Context, boot hypervisor.Boot) (Chain, error) {
	c := Chain{Initrd: sha256.Sum256(nil)}
	if boot.Firmware == nil || boot.Kernel == nil {
		return c, errors.New("measure the boot chain: it has no firmware or no kernel, so nothing vouches for it")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { c.Firmware, err = readFirmware(boot.Firmware); return err })
	g.Go(func() (err error) { c.Kernel, err = hash(ctx, boot.Kernel); return err })
	if boot.Initrd != nil {
		g.Go(func() (err error) { c.Initrd, err = hash(ctx, boot.Initrd); return err })
	}
	if err := g.Wait(); err != nil {
		return Chain{}, fmt.Errorf("measure the boot chain: %w", err)
	}
	return c, nil
}

func readFirmware(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFirmware {
		return nil, fmt.Errorf("firmware %s is not a file of at most %d bytes", f.Name(), maxFirmware)
	}
	b := make([]byte, st.Size())
	_, err = io.ReadFull(section(context.Background(), f), b)
	return b, err
}

func hash(ctx context.Context, f *os.File) ([sha256.Size]byte, error) {
	_, err := sizeOf(f)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	sum, err := kernelhashes.Read(section(ctx, f))
	if err != nil {
		return sum, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return sum, nil
}

// reader reads a file from its start, without its offset, until the context ends.
type reader struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	f   *os.File
	at  int64
}

func section(ctx context.Context, f *os.File) io.Reader { return &reader{ctx: ctx, f: f} }

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.f.ReadAt(p, r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// Version of Launch's JSON form.
const Version = 1

// Launch is what a VM's launch will be reported as. Digests are hexadecimal.
type Launch struct {
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

// Measure computes the digest of a VM, and for SNP makes the anonymous ID block that pins it: its
// returned copy of the spec's SNP settings carries it, unless they have one already. For a VM from an
// IGVM file, which holds its own, there are no settings to return.
func Measure(spec hypervisor.VMSpec, c Chain) (Launch, *hypervisor.SNP, error) {
	cmdline := kernelhashes.Cmdline(spec.Boot.Cmdline)
	fw := sha256.Sum256(c.Firmware)
	l := Launch{
		Version: Version, Platform: string(spec.TEE), Algorithm: "sha384", VCPUs: spec.CPU.Count, CPUModel: spec.CPU.Model, MemoryMiB: spec.MemoryMiB,
		Firmware: hex.EncodeToString(fw[:]), Kernel: hex.EncodeToString(c.Kernel[:]), Initrd: hex.EncodeToString(c.Initrd[:]), Cmdline: hex.EncodeToString(cmdline[:]),
	}
	switch {
	case spec.TEE == hypervisor.TEESNP && spec.SNP != nil && isIGVM(c.Firmware):
		return l, nil, l.igvm(spec, c, cmdline)
	case spec.TEE == hypervisor.TEESNP && spec.SNP != nil:
		s, err := l.snp(spec, c, cmdline)
		return l, s, err
	case spec.TEE == hypervisor.TEETDX && spec.TDX != nil:
		mrtd, err := tdx.MRTD(c.Firmware, tdx.SinglePass, nil, nil)
		l.Digest, l.HostData = mrtd.String(), hex.EncodeToString(spec.TDX.MRConfigID[:])
		return l, nil, err
	}
	return l, nil, fmt.Errorf("measure VM %s: no hardware measures platform %q", spec.ID, spec.TEE)
}

func (l *Launch) snp(spec hypervisor.VMSpec, c Chain, cmdline [sha256.Size]byte) (*hypervisor.SNP, error) {
	sig, err := snp.ModelSignature(spec.CPU.Model)
	if err != nil {
		return nil, err
	}
	ld, err := snp.Measure(snp.Description{
		Mode: snp.SNP, VMM: snp.QEMU, Firmware: c.Firmware, VCPUs: spec.CPU.Count, Signature: sig, Features: snp.FeatureSNPActive,
		Kernel: &kernelhashes.Hashes{Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: cmdline},
	}, nil)
	if err != nil {
		return nil, err
	}
	s := *spec.SNP
	l.Digest, l.HostData, l.Policy = ld.String(), hex.EncodeToString(s.HostData[:]), fmt.Sprintf("%#x", s.Policy)
	if len(s.IDBlock) == 0 && s.Pin != hypervisor.PinNone {
		if err := pin(&s, ld); err != nil {
			return nil, err
		}
	}
	if len(s.IDAuth) == idblock.AuthSize {
		l.IDKeyDigest = keyDigest(s.IDAuth[idblock.OffIDKey:])
		if s.IDAuth[idblock.OffAuthorAlgo] != idblock.AlgoNone {
			l.AuthorKeyDigest = keyDigest(s.IDAuth[idblock.OffAuthorKey:])
		}
	}
	return &s, nil
}

// keyDigest is what a report shows of the key at the start of b.
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
