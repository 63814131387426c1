// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/igvm/igvmtest"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

func contents() snp.IGVMContents {
	return snp.IGVMContents{
		Policy: idblock.DefaultPolicy, Firmware: ovmftest.Build(layout()), Hashes: withKernel(),
		Signature: 0xa00f11, Features: 1,
		Blobs: []snp.Blob{
			{Name: "kernel", GPA: 0x1000000, Data: []byte("kernel")},
			{Name: "initrd", GPA: 0x4000000, Data: bytes.Repeat([]byte("i"), 9000)},
		},
	}
}

func compose(t testing.TB, c snp.IGVMContents) *igvm.File {
	t.Helper()
	raw, err := snp.ComposeIGVM(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := snp.ComposeIGVM(c)
	if err != nil || !bytes.Equal(raw, again) {
		t.Fatalf("a second run gives another file (%v)", err)
	}
	f, err := igvm.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Without blobs, what Cloud Hypervisor launches from the file is what QEMU launches from the firmware
// itself, as long as the processors look alike.
func TestComposedFileHasTheDigestOfADirectLaunch(t *testing.T) {
	c := contents()
	c.Blobs = nil
	d := description(c.Firmware)
	d.VCPUs = 1
	want := mustMeasure(t, d)
	var trace measurement.Trace
	got, err := snp.MeasureIGVM(snp.IGVMLaunch{File: compose(t, c), VCPUs: 1}, &trace)
	if err != nil || !got.Equal(want) {
		t.Errorf("MeasureIGVM = %v, %v, want %s", got, err, want)
	}
	if r := replay(trace); !r.Equal(got) {
		t.Errorf("replay of the trace = %s, want %s", r, got)
	}
}

func TestLoadersMeasureTheSameFileDifferently(t *testing.T) {
	f := compose(t, contents())
	seen := map[string]snp.Loader{}
	for _, l := range []snp.Loader{snp.CloudHypervisorKVM, snp.IGVMMeasure, snp.IGVMMeasureZero} {
		var trace measurement.Trace
		got, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, Loader: l, VCPUs: 2}, &trace)
		if err != nil {
			t.Fatal(err)
		}
		if r := replay(trace); !r.Equal(got) {
			t.Errorf("%s: replay of the trace = %s, want %s", l, r, got)
		}
		if o, ok := seen[got.String()]; ok {
			t.Errorf("%s and %s agree", l, o)
		}
		seen[got.String()] = l
	}
}

// The digests were computed by the igvm crate (microsoft/igvm e6c3ff1, generate_snp_measurement) from
// files that this test writes again; their own digests pin the writer.
func TestDigestsAgreeWithTheIGVMCrate(t *testing.T) {
	block, err := idblock.New(make([]byte, 48), idblock.DefaultPolicy)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := idblock.Anonymous(block)
	if err != nil {
		t.Fatal(err)
	}
	l := layout()
	l.Seed = 3
	h := kernelhashes.New(sha256.Sum256([]byte("k")), nil, "x")
	composed, err := snp.ComposeIGVM(snp.IGVMContents{
		Policy: idblock.DefaultPolicy, Firmware: ovmftest.Build(l), Hashes: &h, Signature: 0xa00f11, Features: 1,
		IDBlock: block.Marshal(), IDAuth: auth,
		Blobs: []snp.Blob{{Name: "k", GPA: 0x1000000, Data: bytes.Repeat([]byte("k"), 9001)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := igvm.Writer{Policy: 0x30000}
	w.Data(0x1000, []byte{1})
	w.Zero(0x4000, 0x2000)
	w.Secrets(0x6000)
	w.CPUID(0x7000)
	w.Parameters(3, 0x8000, 0x2000, 0, 0x1000, 0x1800)
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0, 1))
	written, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, file, want string
		raw              []byte
	}{
		{
			"composed", "ad180ab499cea7866ee25f3bd26b80b14ccf8918f3339e48f1684032d2178f3b",
			"c573e36843eaab1e99403b1b24981b67a05ae3c6263c6a7074a37d7bcbd4235bf180426946386ad80e0117a781b80d6e", composed,
		},
		{
			"written", "f1bed5b8f11a1f7e0c40fef961c000f8983bd4c8026019d6d98e28a45de8e8ca",
			"1608a3d78c389f1789ba5fde92f4c8e32d153f514c8dca3ca4a77da0513f52b9d6052687f39b44f3e1eae884b3ffa792", written,
		},
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256(tt.raw)); got != tt.file {
			t.Fatalf("%s: the file has SHA-256 %s, the crate was given %s", tt.name, got, tt.file)
		}
		f, err := igvm.Parse(tt.raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, Loader: snp.IGVMCrate}, nil); err != nil ||
			got.String() != tt.want {
			t.Errorf("%s: MeasureIGVM = %v, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}

func TestParameterAreasByLoader(t *testing.T) {
	w := igvm.Writer{Policy: 0x30000}
	w.Parameters(0, 0x2000, 0x3000, 0, -1, -1)
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0, 1))
	raw, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	f, err := igvm.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	for l, want := range map[snp.Loader]int{
		snp.CloudHypervisorKVM: 3, snp.IGVMMeasure: 1, snp.IGVMMeasureZero: 1,
		snp.IGVMCrate: 3,
	} {
		var trace measurement.Trace
		if _, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, Loader: l, VCPUs: 1}, &trace); err != nil {
			t.Fatal(err)
		}
		if got := len(trace.Steps) - 1; got != want {
			t.Errorf("%s measures %d pages of the area, want %d", l, got, want)
		}
	}
}

func TestKernelBesideTheFile(t *testing.T) {
	c := contents()
	c.Hashes = nil
	measure := func(c snp.IGVMContents) *measurement.Trace {
		var trace measurement.Trace
		if _, err := snp.MeasureIGVM(snp.IGVMLaunch{File: compose(t, c), VCPUs: 1, Kernel: withKernel()},
			&trace); err != nil {
			t.Fatal(err)
		}
		return &trace
	}
	last := measure(c).Steps
	if s := last[len(last)-2]; s.GPA != 0x10000 || s.Kind != "NORMAL" {
		t.Errorf("page before the processor = %s, want the hashes at 0x10000", s)
	}
	c.Blobs = append(c.Blobs, snp.Blob{Name: "stub", GPA: 0x10000, Data: bytes.Repeat([]byte{1}, 4096)})
	merged := 0
	for _, s := range measure(c).Steps {
		if s.GPA == 0x10000 {
			merged++
		}
	}
	if merged != 1 {
		t.Errorf("page 0x10000 is measured %d times, want the hashes merged into it", merged)
	}
}

func TestProcessorsWithoutContextAreMeasuredUntouched(t *testing.T) {
	f := compose(t, contents())
	var trace measurement.Trace
	if _, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, VCPUs: 3}, &trace); err != nil {
		t.Fatal(err)
	}
	s := trace.Steps[len(trace.Steps)-3:]
	if s[0].Content.Equal(s[1].Content) || !s[1].Content.Equal(s[2].Content) || s[2].GPA != igvm.KVMVMSAGPA {
		t.Errorf("processors = %v", s)
	}
}

func TestIGVMRefusals(t *testing.T) {
	f := compose(t, contents())
	for name, l := range map[string]snp.IGVMLaunch{
		"no vcpus":                     {File: f},
		"kernel with another loader":   {File: f, Loader: snp.IGVMMeasure, Kernel: withKernel()},
		"file for no platform of ours": {File: &igvm.File{}, VCPUs: 1},
	} {
		if d, err := snp.MeasureIGVM(l, nil); err == nil {
			t.Errorf("%s: MeasureIGVM = %s, want a refusal", name, d)
		}
	}
	for name, change := range map[string]func(*snp.IGVMContents){
		"overlapping blobs":       func(c *snp.IGVMContents) { c.Blobs[1].GPA = c.Blobs[0].GPA },
		"blob over the firmware":  func(c *snp.IGVMContents) { c.Blobs[0].GPA = 0xffff0000 },
		"odd blob":                func(c *snp.IGVMContents) { c.Blobs[0].GPA++ },
		"empty blob":              func(c *snp.IGVMContents) { c.Blobs[0].Data = nil },
		"policy without bit 17":   func(c *snp.IGVMContents) { c.Policy = 0 },
		"short context":           func(c *snp.IGVMContents) { c.Context = []byte{1} },
		"hashes without firmware": func(c *snp.IGVMContents) { c.Firmware = nil },
		"id block without auth":   func(c *snp.IGVMContents) { c.IDBlock = make([]byte, idblock.Size) },
	} {
		c := contents()
		change(&c)
		if _, err := snp.ComposeIGVM(c); err == nil {
			t.Errorf("%s: ComposeIGVM succeeded, want a refusal", name)
		}
	}
}

// A pair of directives of some 50 bytes stands for 65536 steps of the launch.
func TestManyParameterAreasTakeLittleWork(t *testing.T) {
	w := igvm.Writer{Policy: uint64(idblock.DefaultPolicy)}
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0x800f12, 1))
	for i := range uint32(2000) {
		w.Parameters(i, uint64(i)<<28, 1<<28, -1, -1, -1)
	}
	raw, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	f, err := igvm.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer worktest.Bound(t, len(raw))()
	if d, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, VCPUs: 1}, nil); err == nil ||
		!strings.Contains(err.Error(), "parameter areas of more than") {
		t.Errorf("MeasureIGVM = %s, %v", d, err)
	}
}

func FuzzMeasureIGVM(f *testing.F) {
	w := igvm.Writer{Policy: 0x30000}
	w.Data(0x10000, []byte("stub"))
	w.Secrets(0x6000)
	w.CPUID(0x7000)
	w.Parameters(3, 0x8000, 0x2000, 0, 0x1000, 0x1800)
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0, 1))
	raw, err := w.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, uint8(0))
	f.Fuzz(func(t *testing.T, raw []byte, loader uint8) {
		defer worktest.Bound(t, len(raw))()
		raw = igvmtest.Resum(slices.Clone(raw))
		file, err := igvm.Parse(raw)
		if err != nil {
			return
		}
		d, err := snp.MeasureIGVM(snp.IGVMLaunch{File: file, Loader: snp.Loader(loader % 4), VCPUs: 2}, nil)
		if err == nil && len(d) != 48 {
			t.Errorf("MeasureIGVM = %x", d)
		}
	})
}
