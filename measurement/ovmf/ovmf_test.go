// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
)

func TestParseReadsTheTableAndIgnoresDecoys(t *testing.T) {
	for seed := range uint64(50) {
		l := ovmftest.Layout{
			Size: 64 << 10, Seed: seed, EIP: 0x80b004 + uint32(seed), HashBase: 0x810c00,
			SEV: ovmftest.Sections(), TDX: ovmftest.TDXSections(64 << 10), Decoys: seed%2 == 0,
			Extra: []ovmftest.Entry{{
				GUID: "cb0497b7-163a-b84b-79aa-1541179e2828",
				Data: ovmftest.Table([]ovmftest.Entry{{GUID: ovmftest.ResetBlock, Data: []byte{1, 2, 3, 4}}}),
			}},
		}
		im, err := ovmf.Parse(ovmftest.Build(l))
		if err != nil {
			t.Fatalf("Parse(seed %d) = %v", seed, err)
		}
		if eip, err := im.ResetEIP(); err != nil || eip != l.EIP {
			t.Errorf("ResetEIP(seed %d) = %#x, %v, want %#x", seed, eip, err, l.EIP)
		}
		if a, err := im.HashArea(); err != nil || a != (ovmf.Area{Base: 0x810c00, Size: 0x400}) {
			t.Errorf("HashArea(seed %d) = %+v, %v", seed, a, err)
		}
		m, err := im.SEV()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(l.SEV, m.Sections); diff != "" {
			t.Errorf("SEV(seed %d) (-want +got):\n%s", seed, diff)
		}
		tdx, err := im.TDX()
		if diff := cmp.Diff(l.TDX, tdx); diff != "" || err != nil {
			t.Errorf("TDX(seed %d) = %v (-want +got):\n%s", seed, err, diff)
		}
	}
}

func TestFirstEntryOfAGUIDCounts(t *testing.T) {
	im, err := ovmf.Parse(ovmftest.Build(ovmftest.Layout{
		Size: 4096, EIP: 0x1234, Extra: []ovmftest.Entry{{GUID: ovmftest.ResetBlock, Data: []byte{0xf0, 0xff, 0, 0}}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if eip, err := im.ResetEIP(); err != nil || eip != 0xfff0 {
		t.Errorf("ResetEIP = %#x, %v, want 0xfff0 from the entry next to the footer", eip, err)
	}
}

func TestImageWithoutTableIsValidButHasNothing(t *testing.T) {
	im, err := ovmf.Parse(ovmftest.Build(ovmftest.Layout{Size: 8192, NoTable: true}))
	if err != nil {
		t.Fatal(err)
	}
	_, e1 := im.ResetEIP()
	_, e2 := im.HashArea()
	_, e3 := im.SEV()
	_, e4 := im.TDX()
	for i, err := range []error{e1, e2, e3, e4} {
		if !errors.Is(err, ovmf.ErrAbsent) {
			t.Errorf("question %d = %v, want ErrAbsent", i, err)
		}
	}
}

func TestBareResetBlockStandsInForATable(t *testing.T) {
	fw := ovmftest.Build(ovmftest.Layout{Size: 4096, NoTable: true})
	g, _ := ovmf.ParseGUID(ovmftest.ResetBlock)
	end := len(fw) - 32
	copy(fw[end-16:], g[:])
	binary.LittleEndian.PutUint16(fw[end-18:], 22)
	binary.LittleEndian.PutUint32(fw[end-22:], 0x80b004)
	im, err := ovmf.Parse(fw)
	if err != nil {
		t.Fatal(err)
	}
	if eip, err := im.ResetEIP(); err != nil || eip != 0x80b004 {
		t.Errorf("ResetEIP = %#x, %v, want 0x80b004", eip, err)
	}
}

func TestParseRefusesMalformedImages(t *testing.T) {
	base := ovmftest.Layout{Size: 8192, EIP: 0x80b004, SEV: ovmftest.Sections()}
	foot := 8192 - 50
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func(fw []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"page more than 64 KiB", func(fw []byte) []byte { return append(make([]byte, 64<<10-4096), fw...) }},
		{"not whole pages", func(fw []byte) []byte { return fw[1:] }},
		{"footer shorter than itself", func(fw []byte) []byte { le.PutUint16(fw[foot:], 17); return fw }},
		{"footer longer than the image", func(fw []byte) []byte { le.PutUint16(fw[foot:], 0xffff); return fw }},
		{"entry shorter than its header", func(fw []byte) []byte { le.PutUint16(fw[foot-18:], 17); return fw }},
		{"entry of length 0", func(fw []byte) []byte { le.PutUint16(fw[foot-18:], 0); return fw }},
		{"entry longer than the table", func(fw []byte) []byte { le.PutUint16(fw[foot-18:], 200); return fw }},
		{"footer inside the table", func([]byte) []byte {
			l := base
			l.Extra = []ovmftest.Entry{{GUID: ovmftest.Footer}}
			return ovmftest.Build(l)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if im, err := ovmf.Parse(tt.change(ovmftest.Build(base))); err == nil {
				t.Errorf("Parse = %+v, want a refusal", im.Entries())
			} else {
				t.Log(err)
			}
		})
	}
}

// An image whose SEV metadata nobody can read is no image for SEV. For TDX it may be a good one: QEMU
// reads only the metadata of the machine that it builds.
func TestMalformedSEVMetadataIsAProblemOfSEVOnly(t *testing.T) {
	base := ovmftest.Layout{Size: 64 << 10, EIP: 0x80b004, SEV: ovmftest.Sections(), TDX: ovmftest.TDXSections(64 << 10)}
	meta := func(fw []byte) []byte {
		im, err := ovmf.Parse(ovmftest.Build(base))
		if err != nil {
			t.Fatal(err)
		}
		g, _ := ovmf.ParseGUID(ovmftest.SEVMetadata)
		e, _ := im.Find(g)
		return fw[len(fw)-int(binary.LittleEndian.Uint32(e.Data)):]
	}
	le := binary.LittleEndian
	entry := func(v uint32) func([]byte) []byte {
		return func(fw []byte) []byte {
			l := base
			l.SEV = nil
			l.Extra = []ovmftest.Entry{{GUID: ovmftest.SEVMetadata, Data: le.AppendUint32(nil, v)}}
			return ovmftest.Build(l)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(fw []byte) []byte
	}{
		{"metadata signature", func(fw []byte) []byte { meta(fw)[0] = 'B'; return fw }},
		{"metadata version", func(fw []byte) []byte { meta(fw)[8] = 2; return fw }},
		{"metadata count beyond length", func(fw []byte) []byte { meta(fw)[12]++; return fw }},
		{"metadata huge count", func(fw []byte) []byte { le.PutUint32(meta(fw)[12:], 0xffffffff); return fw }},
		{"metadata length beyond image", func(fw []byte) []byte { le.PutUint32(meta(fw)[4:], 1<<20); return fw }},
		{"metadata offset 0", entry(0)},
		{"metadata offset before image", entry(64<<10 + 1)},
		{"metadata offset cuts header", entry(15)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im, err := ovmf.Parse(tt.change(ovmftest.Build(base)))
			if err != nil {
				t.Fatal(err)
			}
			if m, err := im.SEV(); err == nil || errors.Is(err, ovmf.ErrAbsent) {
				t.Errorf("SEV = %+v, %v, want a refusal", m, err)
			}
			if _, err := im.TDX(); err != nil {
				t.Errorf("TDX = %v", err)
			}
		})
	}
}

func TestTDXRefusesSectionsThatQEMUWouldRefuse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s []ovmf.TDXSection) []ovmf.TDXSection
	}{
		{"raw data outside the image", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[0].Offset += 4096; return s }},
		{"raw data smaller than memory", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[0].RawSize -= 4096; return s }},
		{"unknown type", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].Type = 9; return s }},
		{"odd address", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].GPA++; return s }},
		{"empty", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].Size = 0; return s }},
		{"overlap", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].GPA = s[3].GPA; return s }},
		{"huge", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].Size = 1 << 60; return s }},
		{"address wraps", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[2].GPA = 1<<64 - 4096; return s }},
		{"no TD HOB", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[4].Type = ovmf.TempMem; return s }},
		{"two TD HOBs", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[3].Type = ovmf.TDHOB; return s }},
		{"no code", func(s []ovmf.TDXSection) []ovmf.TDXSection { return s[1:] }},
		{"raw data where none belongs", func(s []ovmf.TDXSection) []ovmf.TDXSection { s[3].RawSize = 1; return s }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im, err := ovmf.Parse(ovmftest.Build(ovmftest.Layout{
				Size: 64 << 10,
				TDX:  tt.change(ovmftest.TDXSections(64 << 10)),
			}))
			if err != nil {
				t.Fatal(err)
			}
			if s, err := im.TDX(); err == nil {
				t.Errorf("TDX = %+v, want a refusal", s)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestCheckRefusesSectionsThatCannotBeLaunched(t *testing.T) {
	for _, tt := range []struct {
		name     string
		sections []ovmf.Section
	}{
		{"empty", []ovmf.Section{{GPA: 0x1000, Size: 0, Type: ovmf.SecMem}}},
		{"odd address", []ovmf.Section{{GPA: 0x1001, Size: 0x1000, Type: ovmf.SecMem}}},
		{"odd size", []ovmf.Section{{GPA: 0x1000, Size: 0x1001, Type: ovmf.SecMem}}},
		{"overlap", []ovmf.Section{{GPA: 0x3000, Size: 0x1000}, {GPA: 0x1000, Size: 0x3000}}},
		{"same page twice", []ovmf.Section{{GPA: 0x3000, Size: 0x1000}, {GPA: 0x3000, Size: 0x1000}}},
		{"over the firmware", []ovmf.Section{{GPA: 0xffff0000, Size: 0x1000}}},
		{"beyond 4 GiB", []ovmf.Section{{GPA: 0xfffff000, Size: 0x2000}}},
		{"too much", []ovmf.Section{{GPA: 0, Size: 0x80000000}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := (&ovmf.SEVMetadata{Sections: tt.sections}).Check(64 << 10); err == nil {
				t.Error("Check = nil, want a refusal")
			} else {
				t.Log(err)
			}
		})
	}
	if err := (&ovmf.SEVMetadata{Sections: ovmftest.Sections()}).Check(4 << 20); err != nil {
		t.Errorf("Check(edk2's list) = %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(ovmftest.Build(ovmftest.Layout{Size: 4096, EIP: 1, HashBase: 0x810c00, SEV: ovmftest.Sections()}))
	f.Add(ovmftest.Build(ovmftest.Layout{Size: 8192, EIP: 1, TDX: ovmftest.TDXSections(8192), Decoys: true}))
	f.Fuzz(func(t *testing.T, tail []byte) {
		defer worktest.Bound(t, len(tail))()
		tail = tail[max(0, len(tail)-64<<10):]
		fw := append(make([]byte, (4096-len(tail)%4096)%4096), tail...)
		im, err := ovmf.Parse(fw)
		if err != nil {
			return
		}
		if m, err := im.SEV(); err == nil && m.Check(len(fw)) == nil && len(m.Sections) > len(fw) {
			t.Errorf("%d sections out of %d bytes", len(m.Sections), len(fw))
		}
		if s, err := im.TDX(); err == nil {
			for _, x := range s {
				_ = im.Raw(x)
			}
		}
		_, _ = im.ResetEIP()
		_, _ = im.HashArea()
	})
}
