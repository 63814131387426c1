// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package igvm_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/igvm/igvmtest"
)

func sample(t testing.TB) []byte {
	t.Helper()
	w := igvm.Writer{Policy: 0x30000}
	w.Data(0x1000, bytes.Repeat([]byte{7}, 5000))
	w.Zero(0x4000, 0x2000)
	w.Secrets(0x6000)
	w.CPUID(0x7000)
	w.Parameters(3, 0x8000, 0x2000, 0, 0x1000, 0x1800)
	w.Context(0, igvm.KVMVMSAGPA, bytes.Repeat([]byte{9}, 4096))
	w.IDBlock(make([]byte, 96), make([]byte, 4096))
	b, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseReadsWhatWriterWrote(t *testing.T) {
	f, err := igvm.Parse(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	if f.Policy != 0x30000 || !f.HasPolicy || len(f.Platforms) != 1 ||
		f.Platforms[0] != (igvm.Platform{Mask: 1, Type: igvm.SEVSNP, Version: 1}) {
		t.Errorf("file = %+v", f)
	}
	type brief struct {
		Type   igvm.Type
		GPA    uint64
		Size   uint64
		Index  uint32
		Offset uint32
		Data   int
		Page   igvm.DataType
	}
	var got []brief
	for _, d := range f.For(1) {
		got = append(got, brief{d.Type, d.GPA, d.Size, d.Index, d.Offset, len(d.Data), d.DataType})
	}
	want := []brief{
		{Type: igvm.PageData, GPA: 0x1000, Data: 4096},
		{Type: igvm.PageData, GPA: 0x2000, Data: 4096},
		{Type: igvm.PageData, GPA: 0x4000},
		{Type: igvm.PageData, GPA: 0x5000},
		{Type: igvm.PageData, GPA: 0x6000, Page: igvm.SecretsPage},
		{Type: igvm.PageData, GPA: 0x7000, Page: igvm.CPUIDPage},
		{Type: igvm.ParameterArea, Size: 0x2000, Index: 3},
		{Type: igvm.MemoryMap, Index: 3},
		{Type: igvm.VPCount, Index: 3, Offset: 0x1000},
		{Type: igvm.CommandLine, Index: 3, Offset: 0x1800},
		{Type: igvm.ParameterInsert, GPA: 0x8000, Index: 3},
		{Type: igvm.VPContext, GPA: igvm.KVMVMSAGPA, Data: 4096},
		{Type: igvm.SNPIDBlock, Data: 696},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("directives (-want +got):\n%s", diff)
	}
}

func TestParseRefusesMalformedFiles(t *testing.T) {
	le := binary.LittleEndian
	first := 24 + 24 + 24 // the first page directive, after platform and policy
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"magic", func(b []byte) []byte { b[0] = 'X'; return igvmtest.Resum(b) }},
		{"version", func(b []byte) []byte { b[4] = 3; return igvmtest.Resum(b) }},
		{"checksum", func(b []byte) []byte { b[20] ^= 1; return b }},
		{"a header bit", func(b []byte) []byte { b[first+8] ^= 1; return b }},
		{"total size", func(b []byte) []byte { return append(b, 0) }},
		{"headers inside the fixed header", func(b []byte) []byte { le.PutUint32(b[8:], 16); return igvmtest.Resum(b) }},
		{"header length past the end", func(b []byte) []byte { le.PutUint32(b[first+4:], 1<<30); return igvmtest.Resum(b) }},
		{"header of other length", func(b []byte) []byte { le.PutUint32(b[first+4:], 16); return igvmtest.Resum(b) }},
		{"unknown type", func(b []byte) []byte { le.PutUint32(b[first:], 0x3ff); return igvmtest.Resum(b) }},
		{"odd address", func(b []byte) []byte { b[first+8] = 1; return igvmtest.Resum(b) }},
		{"data offset outside", func(b []byte) []byte {
			le.PutUint32(b[first+8+12:], uint32(len(b)-4095))
			return igvmtest.Resum(b)
		}},
		{"data offset in the headers", func(b []byte) []byte { le.PutUint32(b[first+8+12:], 8); return igvmtest.Resum(b) }},
		{"large page", func(b []byte) []byte { b[first+8+16] = 1; return igvmtest.Resum(b) }},
		{"unknown flag", func(b []byte) []byte { b[first+8+16] = 8; return igvmtest.Resum(b) }},
		{"unknown page type", func(b []byte) []byte { b[first+8+20] = 4; return igvmtest.Resum(b) }},
		{"mask of two bits", func(b []byte) []byte { b[24+8] = 3; return igvmtest.Resum(b) }},
		{"relocation", func(b []byte) []byte { le.PutUint32(b[first:], 0x102); return igvmtest.Resum(b) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if f, err := igvm.Parse(tt.change(sample(t))); err == nil {
				t.Errorf("Parse = %+v, want a refusal", f)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, use := range map[string]func(*igvm.Writer){
		"no policy":       func(w *igvm.Writer) { w.Policy = 0 },
		"odd data":        func(w *igvm.Writer) { w.Data(1, []byte{1}) },
		"odd zeros":       func(w *igvm.Writer) { w.Zero(0, 1) },
		"odd parameters":  func(w *igvm.Writer) { w.Parameters(0, 0, 1, 0, 0, 0) },
		"short context":   func(w *igvm.Writer) { w.Context(0, 0, nil) },
		"short id blocks": func(w *igvm.Writer) { w.IDBlock(nil, nil) },
	} {
		w := igvm.Writer{Policy: 1}
		use(&w)
		if _, err := w.Bytes(); err == nil {
			t.Errorf("%s: Bytes succeeded, want a refusal", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	w := igvm.Writer{Policy: 1}
	w.Data(0x1000, []byte{1})
	w.Parameters(3, 0x8000, 0x2000, 0, 0x1000, 0x1800)
	w.IDBlock(make([]byte, 96), make([]byte, 4096))
	small, err := w.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		b = igvmtest.Resum(slices.Clone(b)) // most inputs would end at the checksum
		p, err := igvm.Parse(b)
		if err != nil {
			return
		}
		for _, d := range p.Directives {
			if len(d.Data) > len(b) || d.Type.String() == "" {
				t.Errorf("directive %+v from a file of %d bytes", d, len(b))
			}
		}
	})
}
