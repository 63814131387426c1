// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"path"
	"testing"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/tests/vectors"
)

// The published cases name their sources in the vectors' README; the synthetic ones were computed by
// an independent program.
func TestMeasureAgreesWithPublishedVectors(t *testing.T) {
	dir := vectors.Dir(t)
	files, err := fs.Glob(dir, "snp/*/cases.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("cases of %v = %v, %v", dir, files, err)
	}
	for _, f := range files {
		for _, c := range vectors.Cases(t, dir, f) {
			t.Run(c.Name, func(t *testing.T) { checkCase(t, dir, path.Dir(f), c) })
		}
	}
}

func TestMeasureAgreesWithSyntheticVectors(t *testing.T) {
	dir := vectors.Synthetic(t)
	for _, c := range vectors.Cases(t, dir, "cases.json") {
		t.Run(c.Name, func(t *testing.T) { checkCase(t, dir, ".", c) })
	}
}

func checkCase(t *testing.T, dir fs.FS, folder string, c vectors.Case) {
	t.Helper()
	read := func(name string) []byte {
		if name == "fake_fw_tdx.bin" {
			return withTDXMetadata(vectors.Read(t, dir, path.Join(folder, "fake_fw.bin")))
		}
		return vectors.Read(t, dir, path.Join(folder, name))
	}
	if c.Mode == "ovmf-hash" {
		got, err := snp.FirmwareHash(read(c.Firmware))
		if err != nil || got.String() != c.Expect {
			t.Fatalf("FirmwareHash = %v, %v, want %s", got, err, c.Expect)
		}
		return
	}
	d := describe(t, c, read)
	var trace measurement.Trace
	got, err := snp.Measure(d, &trace)
	if c.Expect == "error" {
		if err == nil {
			t.Fatalf("Measure = %s, want a refusal", got)
		}
		return
	}
	if err != nil || got.String() != c.Expect {
		t.Fatalf("Measure = %v, %v, want %s", got, err, c.Expect)
	}
	if last := trace.Steps[len(trace.Steps)-1].After; !last.Equal(got) {
		t.Errorf("last step of the trace leads to %s, the digest is %s", last, got)
	}
	if d.Mode == snp.SNP {
		checkDerivation(t, d, got)
	}
}

func checkDerivation(t *testing.T, d snp.Description, want measurement.Digest) {
	t.Helper()
	n := d.VCPUs
	d.VCPUs = 1
	one, err := snp.Measure(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := snp.Derive(one, d, n); err != nil || !got.Equal(want) {
		t.Errorf("Derive(%d) = %v, %v, want %s", n, got, err, want)
	}
	p, err := snp.Prepare(d)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Digest(n); err != nil || !got.Equal(want) {
		t.Errorf("Prepared.Digest(%d) = %v, %v, want %s", n, got, err, want)
	}
}

func describe(t *testing.T, c vectors.Case, read func(string) []byte) snp.Description {
	t.Helper()
	d := snp.Description{
		Mode:  map[string]snp.Mode{"snp": snp.SNP, "es": snp.ES, "sev": snp.SEV}[c.Mode],
		VCPUs: c.VCPUs, Signature: c.Signature, Features: c.Features, Kernel: hashes(t, c, read),
	}
	var err error
	if d.VMM, err = snp.ParseVMM(c.VMM); err != nil {
		t.Fatal(err)
	}
	if c.Type != "" {
		if d.Signature, err = snp.ModelSignature(c.Type); err != nil {
			t.Fatal(err)
		}
	}
	if c.FirmwareHash != "" {
		d.FirmwareHash = vectors.Hex(t, c.FirmwareHash)
	}
	if c.Firmware != "" {
		d.Firmware = read(c.Firmware)
		return d
	}
	d.Metadata = &snp.Metadata{APEIP: c.APEIP, HashTableGPA: c.HashTableGPA}
	for _, s := range c.Sections {
		d.Metadata.Sections = append(d.Metadata.Sections,
			ovmf.Section{GPA: s.GPA, Size: s.Size, Type: ovmf.SectionType(s.Type)})
	}
	return d
}

func hashes(t *testing.T, c vectors.Case, read func(string) []byte) *kernelhashes.Hashes {
	t.Helper()
	var kernel, initrd *[32]byte
	switch {
	case c.Kernel != nil:
		s := sha256.Sum256(read(*c.Kernel))
		kernel = &s
	case c.KernelSHA256 != "":
		kernel = (*[32]byte)(vectors.Hex(t, c.KernelSHA256))
	default:
		return nil
	}
	switch {
	case c.Initrd != nil:
		s := sha256.Sum256(read(*c.Initrd))
		initrd = &s
	case c.InitrdSHA256 != "":
		initrd = (*[32]byte)(vectors.Hex(t, c.InitrdSHA256))
	}
	h := kernelhashes.New(*kernel, initrd, c.Append)
	return &h
}

// withTDXMetadata adds to the GCE tests' image what the published file lacks, but the published
// digest covers: a TDX descriptor at 0x100 and its entry in the footer table.
func withTDXMetadata(fw []byte) []byte {
	le := binary.LittleEndian
	const at = 0x100
	copy(fw[at:], []byte{0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44, 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae})
	d := append([]byte("TDVF"), make([]byte, 204)...)
	le.PutUint32(d[4:], 208)
	le.PutUint32(d[8:], 1)
	le.PutUint32(d[12:], 6)
	for i, s := range []struct {
		off, raw, attr, kind uint32
		gpa, size            uint64
	}{
		{0x20000, 0x1e0000, 1, 0, 0xffe20000, 0x1e0000},
		{0, 0x20000, 0, 1, 0xffe00000, 0x20000},
		{0, 0, 0, 3, 0x810000, 0x10000},
		{0, 0, 0, 3, 0x80b000, 0x2000},
		{0, 0, 0, 2, 0x809000, 0x2000},
		{0, 0, 0, 3, 0x800000, 0x6000},
	} {
		b := d[16+32*i:]
		le.PutUint32(b, s.off)
		le.PutUint32(b[4:], s.raw)
		le.PutUint64(b[8:], s.gpa)
		le.PutUint64(b[16:], s.size)
		le.PutUint32(b[24:], s.kind)
		le.PutUint32(b[28:], s.attr)
	}
	copy(fw[at+16:], d)
	foot := len(fw) - 32 - 18
	start := foot - int(le.Uint16(fw[foot:])) + 18 - 22
	le.PutUint32(fw[start:], uint32(len(fw)-at-16))
	le.PutUint16(fw[start+4:], 22)
	copy(fw[start+6:], []byte{
		0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7,
		0xbf, 0x8e, 0xc2,
	})
	le.PutUint16(fw[foot:], le.Uint16(fw[foot:])+22)
	return fw
}
