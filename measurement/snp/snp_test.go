// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
)

func layout() ovmftest.Layout {
	return ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00, SEV: ovmftest.Sections()}
}

func withKernel() *kernelhashes.Hashes {
	h := kernelhashes.New(sha256.Sum256([]byte("kernel")), nil, "console=ttyS0")
	return &h
}

func description(fw []byte) snp.Description {
	return snp.Description{Firmware: fw, Kernel: withKernel(), VCPUs: 4, Signature: 0xa00f11, Features: 1}
}

func mustMeasure(t interface{ Fatalf(string, ...any) }, d snp.Description) measurement.Digest {
	got, err := snp.Measure(d, nil)
	if err != nil {
		t.Fatalf("Measure(%+v) = %v", d.VMM, err)
	}
	return got
}

// drawLayout draws an image as edk2 might lay it out.
func drawLayout(t *rapid.T) ovmftest.Layout {
	l := layout()
	l.Size = 4096 << rapid.IntRange(1, 5).Draw(t, "size")
	l.Seed = rapid.Uint64().Draw(t, "seed")
	l.EIP = rapid.Uint32Range(1, 1<<32-1).Draw(t, "eip")
	l.HashBase = 0x810000 + rapid.Uint32Range(0, 4096-kernelhashes.TableSize).Draw(t, "offset")
	l.SEV = rapid.Permutation(ovmftest.Sections()).Draw(t, "sections")
	l.Decoys = rapid.Bool().Draw(t, "decoys")
	return l
}

func drawDescription(t *rapid.T) snp.Description {
	d := description(ovmftest.Build(drawLayout(t)))
	d.VMM = snp.VMM(rapid.IntRange(0, 4).Draw(t, "vmm"))
	d.VCPUs = rapid.IntRange(1, 255).Draw(t, "vcpus")
	d.Signature = rapid.Uint32().Draw(t, "signature")
	d.Features = rapid.Uint64().Draw(t, "features") | 1
	if rapid.Bool().Draw(t, "no kernel") {
		d.Kernel = nil
	}
	return d
}

func TestAnySingleBitOfTheFirmwareChangesTheDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDescription(t)
		d.Mode = snp.Mode(rapid.IntRange(0, 2).Draw(t, "mode"))
		before := mustMeasure(t, d)
		d.Firmware = slices.Clone(d.Firmware)
		i := rapid.IntRange(0, len(d.Firmware)*8-1).Draw(t, "bit")
		d.Firmware[i/8] ^= 1 << (i % 8)
		after, err := snp.Measure(d, nil) // a change may also make the image malformed
		if err == nil && after.Equal(before) {
			t.Fatalf("bit %d of the firmware is not measured", i)
		}
	})
}

func TestAnySingleBitOfTheKernelHashesChangesTheDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDescription(t)
		d.Kernel = withKernel()
		d.Mode = snp.Mode(rapid.IntRange(0, 2).Draw(t, "mode"))
		before := mustMeasure(t, d)
		h := *d.Kernel
		part := rapid.SampledFrom([]*[32]byte{&h.Kernel, &h.Initrd, &h.Cmdline}).Draw(t, "part")
		i := rapid.IntRange(0, 255).Draw(t, "bit")
		part[i/8] ^= 1 << (i % 8)
		d.Kernel = &h
		if mustMeasure(t, d).Equal(before) {
			t.Fatalf("bit %d of a hash is not measured", i)
		}
	})
}

func TestProcessorsAreMeasured(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDescription(t)
		d.VMM = snp.VMM(rapid.IntRange(0, 1).Draw(t, "qemu"))
		before := mustMeasure(t, d)
		e := d
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0:
			e.VCPUs = d.VCPUs%255 + 1
		case 1:
			e.Signature ^= 1 << rapid.IntRange(0, 31).Draw(t, "bit")
		case 2:
			e.Features ^= 1 << rapid.IntRange(1, 63).Draw(t, "bit")
		case 3:
			e.VMM = 1 - d.VMM
		}
		if mustMeasure(t, e).Equal(before) {
			t.Fatalf("no difference between %+v and %+v", before, e.VCPUs)
		}
	})
}

// Reference is a second, plain implementation of the chain for many processors: page by page from
// the trace, with no shortcut.
func TestDerivationEqualsDirectComputation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDescription(t)
		want := mustMeasure(t, d)
		one := d
		one.VCPUs = 1
		got, err := snp.Derive(mustMeasure(t, one), d, d.VCPUs)
		if err != nil || !got.Equal(want) {
			t.Fatalf("Derive = %v, %v, want %s", got, err, want)
		}
		p, err := snp.Prepare(d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Digest(d.VCPUs); err != nil || !got.Equal(want) {
			t.Fatalf("Prepared.Digest = %v, %v, want %s", got, err, want)
		}
		seeded := d
		if seeded.FirmwareHash, err = snp.FirmwareHash(d.Firmware); err != nil {
			t.Fatal(err)
		}
		if got := mustMeasure(t, seeded); !got.Equal(want) {
			t.Fatalf("seeded digest = %s, want %s", got, want)
		}
		var trace measurement.Trace
		if _, err := snp.Measure(d, &trace); err != nil || replay(trace).String() != want.String() {
			t.Fatalf("replay of the trace = %s, want %s (%v)", replay(trace), want, err)
		}
	})
}

func TestMetadataStandsForTheFirmware(t *testing.T) {
	d := description(ovmftest.Build(layout()))
	want := mustMeasure(t, d)
	h, err := snp.FirmwareHash(d.Firmware)
	if err != nil {
		t.Fatal(err)
	}
	d.Firmware, d.FirmwareHash = nil, h
	d.Metadata = &snp.Metadata{Sections: ovmftest.Sections(), APEIP: 0x80b004, HashTableGPA: 0x810c00}
	if got := mustMeasure(t, d); !got.Equal(want) {
		t.Errorf("Measure = %s, want %s", got, want)
	}
}

// QEMU writes the table into every section of the type; each has its own length, and the table may
// reach into a second page.
func TestEveryHashSectionCarriesTheTable(t *testing.T) {
	kernel := withKernel()
	for _, tt := range []struct {
		name  string
		base  uint32
		sizes []uint32 // of sections at 0x810000, 0x830000, …
	}{
		{name: "one page", base: 0x810c00, sizes: []uint32{0x1000}},
		{name: "table across the pages of a section", base: 0x810f80, sizes: []uint32{0x2000}},
		{name: "pages after the table", base: 0x810000, sizes: []uint32{0x14000}},
		{name: "two sections of different length", base: 0x810c00, sizes: []uint32{0x1000, 0x3000}},
		{name: "the one where the firmware looks comes last", base: 0x830c00, sizes: []uint32{0x3000, 0x1000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := layout()
			l.HashBase, l.SEV = tt.base, ovmftest.Sections()[:1]
			var want []string
			table := kernel.Table()
			for i, size := range tt.sizes {
				s := ovmf.Section{GPA: 0x810000 + uint32(i)*0x20000, Size: size, Type: ovmf.KernelHashes}
				l.SEV = append(l.SEV, s)
				content := make([]byte, size)
				copy(content[tt.base%4096:], table[:])
				for off := uint32(0); off < size; off += 4096 {
					sum := sha512.Sum384(content[off : off+4096])
					want = append(want, fmt.Sprintf("%#x %x", s.GPA+off, sum))
				}
			}
			d := description(ovmftest.Build(l))
			meta := snp.Description{Kernel: kernel, VCPUs: d.VCPUs, Signature: d.Signature, Features: d.Features}
			meta.Metadata = &snp.Metadata{Sections: l.SEV, APEIP: l.EIP, HashTableGPA: tt.base}
			var err error
			if meta.FirmwareHash, err = snp.FirmwareHash(d.Firmware); err != nil {
				t.Fatal(err)
			}
			for name, d := range map[string]snp.Description{"firmware": d, "metadata": meta} {
				var trace measurement.Trace
				if _, err := snp.Measure(d, &trace); err != nil {
					t.Fatalf("Measure(%s) = %v", name, err)
				}
				var got []string
				for _, s := range trace.Steps {
					if s.Kind == "NORMAL" && s.Source != "firmware" {
						got = append(got, fmt.Sprintf("%#x %s", s.GPA, s.Content))
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("pages of the hash sections (%s): %s", name, diff)
				}
			}
		})
	}
}

func TestMetadataWithoutStartAddressIsEnoughForOneProcessor(t *testing.T) {
	d := description(nil)
	d.Firmware, d.Kernel, d.FirmwareHash = nil, nil, make([]byte, 48)
	d.Metadata = &snp.Metadata{Sections: ovmftest.Sections()}
	d.VCPUs = 1
	mustMeasure(t, d)
	d.VCPUs = 2
	if got, err := snp.Measure(d, nil); err == nil {
		t.Errorf("Measure for two processors = %s, want a refusal", got)
	}
}

func TestMeasureRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layout func(*ovmftest.Layout)
		change func(*snp.Description)
	}{
		{name: "no vcpu", change: func(d *snp.Description) { d.VCPUs = 0 }},
		{name: "negative vcpus", change: func(d *snp.Description) { d.VCPUs = -1 }},
		{name: "too many vcpus", change: func(d *snp.Description) { d.VCPUs = snp.MaxVCPUs + 1 }},
		{name: "features without SNP", change: func(d *snp.Description) { d.Features = 0x20 }},
		{name: "no firmware", change: func(d *snp.Description) { d.Firmware = nil }},
		{name: "hash without metadata", change: func(d *snp.Description) {
			d.Firmware, d.FirmwareHash = nil, make([]byte, 48)
		}},
		{name: "short firmware hash", change: func(d *snp.Description) { d.FirmwareHash = make([]byte, 32) }},
		{name: "image and metadata", change: func(d *snp.Description) { d.Metadata = &snp.Metadata{} }},
		{name: "kernel without hash area", layout: func(l *ovmftest.Layout) { l.HashBase = 0 }},
		{name: "kernel with small hash area", layout: func(l *ovmftest.Layout) { l.HashSize = 175 }},
		{name: "hash table across the page's end", layout: func(l *ovmftest.Layout) { l.HashBase = 0x810f51 }},
		{name: "hash area in another page", layout: func(l *ovmftest.Layout) { l.HashBase = 0x80fc00 }},
		{name: "one of two hash sections too small", layout: func(l *ovmftest.Layout) {
			l.HashBase, l.SEV[6].Size = 0x810f80, 0x1000
			l.SEV = append(l.SEV, ovmf.Section{GPA: 0x830000, Size: 0x2000, Type: ovmf.KernelHashes})
		}},
		{name: "kernel without hash section", layout: func(l *ovmftest.Layout) { l.SEV = l.SEV[:6] }},
		{name: "no SEV metadata", layout: func(l *ovmftest.Layout) { l.SEV = nil }},
		{name: "no reset block", layout: func(l *ovmftest.Layout) { l.EIP = 0 }},
		{name: "empty section", layout: func(l *ovmftest.Layout) { l.SEV[0].Size = 0 }},
		{
			name: "unknown section on GCE", layout: func(l *ovmftest.Layout) { l.SEV[0].Type = 77 },
			change: func(d *snp.Description) { d.VMM = snp.GCE },
		},
		{name: "hash under SEV", change: func(d *snp.Description) { d.Mode, d.FirmwareHash = snp.SEV, make([]byte, 48) }},
		{
			name: "kernel without hash area under SEV", layout: func(l *ovmftest.Layout) { l.HashBase = 0 },
			change: func(d *snp.Description) { d.Mode = snp.SEV },
		},
		{name: "no vcpu under ES", change: func(d *snp.Description) { d.Mode, d.VCPUs = snp.ES, 0 }},
		{
			name: "no reset block under ES", layout: func(l *ovmftest.Layout) { l.EIP = 0 },
			change: func(d *snp.Description) { d.Mode = snp.ES },
		},
		{name: "unknown mode", change: func(d *snp.Description) { d.Mode = 9 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := layout()
			if tt.layout != nil {
				tt.layout(&l)
			}
			d := description(ovmftest.Build(l))
			if tt.change != nil {
				tt.change(&d)
			}
			if got, err := snp.Measure(d, nil); err == nil {
				t.Errorf("Measure = %s, want a refusal", got)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestMalformedMetadataHasNoDigestInAnyMode(t *testing.T) {
	l := layout()
	l.SEV, l.Extra = nil, []ovmftest.Entry{{GUID: ovmftest.SEVMetadata, Data: []byte{1, 0, 0, 0}}}
	fw := ovmftest.Build(l)
	for _, mode := range []snp.Mode{snp.SNP, snp.ES, snp.SEV} {
		d := description(fw)
		d.Mode = mode
		if got, err := snp.Measure(d, nil); err == nil {
			t.Errorf("Measure(%s) = %s, want a refusal", mode, got)
		}
	}
	if got, err := snp.FirmwareHash(fw); err == nil {
		t.Errorf("FirmwareHash = %s, want a refusal", got)
	}
}

func TestUnknownSectionIsAZeroPageInQEMU(t *testing.T) {
	a, b := layout(), layout()
	a.SEV[0].Type = 77
	var ta, tb measurement.Trace
	for l, tr := range map[*ovmftest.Layout]*measurement.Trace{&a: &ta, &b: &tb} {
		if _, err := snp.Measure(description(ovmftest.Build(*l)), tr); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range measurement.Diff(&ta, &tb) {
		if d.A.Source != "firmware" {
			t.Errorf("difference outside of the firmware: %s", d)
		}
	}
}

func TestModelSignatures(t *testing.T) {
	for _, tt := range []struct {
		model string
		want  uint32
	}{
		{"EPYC", 0x800f12},
		{"EPYC-v5", 0x800f12},
		{"EPYC-IBPB", 0x800f12},
		{"EPYC-Rome", 0x830f10},
		{"EPYC-Rome-v5", 0x830f10},
		{"EPYC-Milan-v4", 0xa00f11},
		{"EPYC-Genoa-v3", 0xa10f10},
		{"EPYC-Turin", 0xb00f00},
		{"EPYC-Turin-v2", 0xb00f00},
		{"qemu64", 0x60fb1},
		{"Dhyana-v2", 0x900f01},
	} {
		if got, err := snp.ModelSignature(tt.model); err != nil || got != tt.want {
			t.Errorf("ModelSignature(%s) = %#x, %v, want %#x", tt.model, got, err, tt.want)
		}
	}
	for _, m := range []string{"", "host", "max", "epyc-v4", "EPYC-v6", "EPYC-Milan-v9", "Dhyana-v3", "Skylake-Server"} {
		if got, err := snp.ModelSignature(m); err == nil {
			t.Errorf("ModelSignature(%q) = %#x, want a refusal", m, got)
		}
	}
	for _, tt := range []struct{ family, model, stepping, want uint32 }{
		{23, 1, 2, 0x800f12},
		{23, 49, 0, 0x830f10},
		{25, 1, 1, 0xa00f11},
		{25, 17, 0, 0xa10f10},
		{26, 0, 0, 0xb00f00},
		{15, 107, 1, 0x60fb1},
		{6, 2, 3, 0x623},
		{16, 2, 3, 0x100f23},
		{21, 1, 2, 0x600f12},
		{21, 2, 0, 0x600f20},
		{24, 0, 1, 0x900f01},
		{0, 0, 0, 0},
	} {
		if got, err := snp.Signature(tt.family, tt.model, tt.stepping); err != nil || got != tt.want {
			t.Errorf("Signature(%d, %d, %d) = %#x, %v, want %#x", tt.family, tt.model, tt.stepping, got, err, tt.want)
		}
	}
	if _, err := snp.Signature(271, 0, 0); err == nil {
		t.Error("Signature(271, 0, 0) was accepted")
	}
}

func TestTraceExplainsTheDifference(t *testing.T) {
	d := description(ovmftest.Build(layout()))
	measure := func(d snp.Description) *measurement.Trace {
		var tr measurement.Trace
		if _, err := snp.Measure(d, &tr); err != nil {
			t.Fatal(err)
		}
		return &tr
	}
	a := measure(d)
	if diff := measurement.Diff(a, measure(d)); len(diff) != 0 {
		t.Errorf("Diff of equal launches = %v", diff)
	}
	e := d
	e.VCPUs++
	if diff := measurement.Diff(a, measure(e)); len(diff) != 1 || diff[0].Change != measurement.OnlyInB ||
		diff[0].B.Source != "vcpu 4" {
		t.Errorf("Diff for one more vcpu = %v", diff)
	}
	e = d
	h := kernelhashes.New(sha256.Sum256([]byte("other")), nil, "console=ttyS0")
	e.Kernel = &h
	if diff := measurement.Diff(a, measure(e)); len(diff) != 1 || diff[0].Change != measurement.Content ||
		diff[0].A.Source != "section 6" && diff[0].A.Kind != "NORMAL" {
		t.Errorf("Diff for another kernel = %v", diff)
	}
	e.Kernel = nil
	if diff := measurement.Diff(a, measure(e)); len(diff) != 1 || diff[0].Change != measurement.Kind {
		t.Errorf("Diff without a kernel = %v", diff)
	}
	e = d
	e.VMM = snp.EC2
	moved := 0
	for _, x := range measurement.Diff(a, measure(e)) {
		if x.Change == measurement.Moved {
			moved++
		}
	}
	if moved == 0 {
		t.Error("Diff does not see that EC2 measures CPUID at the end")
	}
}

func FuzzMeasure(f *testing.F) {
	l := layout()
	l.Size = 4096
	f.Add(ovmftest.Build(l), uint8(0), 2)
	l.Size, l.Decoys = 8192, true
	f.Add(ovmftest.Build(l), uint8(3), 255)
	f.Fuzz(func(t *testing.T, tail []byte, mode uint8, vcpus int) {
		defer worktest.Bound(t, len(tail))()
		fw := append(make([]byte, (4096-len(tail)%4096)%4096), tail...)
		d := snp.Description{
			Mode: snp.Mode(mode % 3), VMM: snp.VMM(mode / 3 % 5), Firmware: fw, VCPUs: vcpus % 256,
			Features: 1, Kernel: withKernel(),
		}
		if im, err := ovmf.Parse(fw); err == nil {
			if m, err := im.SEV(); err == nil {
				n := uint64(0)
				for _, s := range m.Sections {
					n += uint64(s.Size)
				}
				if n > 16<<20 {
					t.Skip("much work, no news")
				}
			}
		}
		got, err := snp.Measure(d, nil)
		if err == nil && len(got) != 32 && len(got) != 48 {
			t.Errorf("Measure = %x", got)
		}
	})
}
