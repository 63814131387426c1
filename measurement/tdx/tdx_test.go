// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/tdx"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
	"github.com/coco-shim/coco/tests/vectors"
)

// emptyCFV is the configuration volume of a 4 MiB OVMF build without variables, from edk2's
// VarStore.fdf.inc. Two public tools carry its digest as a constant.
func emptyCFV(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 0x84000)
	for i := range b {
		b[i] = 0xff
	}
	copy(b,
		vectors.Hex(t,
			"000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f5000400800000000005f465648fffe04004800afb8000000028400000000100000"+
				"0000000000000000782cf3aa7b949a43a1802e144ec37792b8ff03005afe000000000000"))
	copy(b[0x41000:], vectors.Hex(t, "2b29589e687c7d49a0ce6500fd9f1b952caf2c64feffffffe00f000000000000"))
	const want = "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
	if h := sha512.Sum384(b); measurement.Digest(h[:]).String() != want {
		t.Fatalf("empty variable store has digest %x, want %s", h, want)
	}
	return b
}

// image is a firmware with OVMF's layout and the given variables.
func image(t testing.TB, cfv []byte) []byte {
	t.Helper()
	fw := ovmftest.Build(ovmftest.Layout{Size: 4 << 20, Seed: 1, TDX: ovmftest.TDXSections(4 << 20)})
	copy(fw, cfv)
	return fw
}

func profile(t testing.TB, s string) tdx.Profile {
	t.Helper()
	p, err := tdx.ParseProfile(s)
	if err != nil || p.String() != s {
		t.Fatalf("ParseProfile(%s) = %s, %v", s, p, err)
	}
	return p
}

func content(s string) tdx.Content { return tdx.Content{Data: []byte(s)} }

func description(t testing.TB, p string) tdx.Description {
	t.Helper()
	d := tdx.Description{
		Profile: profile(t, p), Firmware: image(t, emptyCFV(t)), Memory: 2 << 30,
		ACPI:   &tdx.ACPI{Loader: content("loader"), RSDP: content("rsdp"), Tables: content("tables")},
		Kernel: tdx.Content{Data: bzImage()}, Initrd: content("initrd"), Cmdline: "console=hvc0",
	}
	if d.Profile.EDK2 >= 202505 {
		d.SMBIOS = content("smbios")
	}
	return d
}

const (
	older = "edk2-stable202408+qemu-10.1"
	newer = "edk2-stable202508+qemu-11.0"
)

// bzImage is the least that is both a PE image and a kernel with a setup header.
func bzImage() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x1400)
	for i := range b {
		b[i] = byte(i * 7)
	}
	clear(b[:0x400])
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x46:], 2)   // sections
	le.PutUint16(b[0x54:], 160) // optional header, six directories
	opt := b[0x58:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[60:], 0x400)
	le.PutUint32(opt[64:], 0xdeadbeef)
	le.PutUint32(opt[108:], 6)
	for i, s := range [][2]uint32{{0xa00, 0x800}, {0x400, 0x600}} {
		sec := opt[160+40*i:]
		le.PutUint32(sec[16:], s[1])
		le.PutUint32(sec[20:], s[0])
	}
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 2)
	return b
}

func must(t interface{ Fatalf(string, ...any) }) func(measurement.Digest, error) measurement.Digest {
	return func(d measurement.Digest, err error) measurement.Digest {
		if err != nil {
			t.Fatalf("measurement: %v", err)
		}
		return d
	}
}

// The TdHob digest of 2 GiB is in a published log, that of 64 GiB in another (its first bytes are known).
func TestHOBAgreesWithPublishedLogs(t *testing.T) {
	for memory, want := range map[uint64]string{
		2 << 30:  "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
		64 << 30: "8ae1e425",
	} {
		hob, err := tdx.HOB(ovmftest.TDXSections(4<<20), memory)
		if err != nil {
			t.Fatal(err)
		}
		h := sha512.Sum384(hob[:len(hob)-8])
		if got := measurement.Digest(h[:]).String(); got[:len(want)] != want {
			t.Errorf("HOB(%d GiB) has digest %s, want %s", memory>>30, got, want)
		}
	}
}

func TestHOBRefuses(t *testing.T) {
	for name, memory := range map[string]uint64{
		"nothing": 0, "odd": 4097, "too little for the firmware": 8 << 20,
		"too much": 1 << 60,
	} {
		if _, err := tdx.HOB(ovmftest.TDXSections(4<<20), memory); err == nil {
			t.Errorf("%s: HOB(%d) succeeded", name, memory)
		}
	}
	if _, err := tdx.HOB(nil, 2<<30); err == nil {
		t.Error("HOB without a section succeeded")
	}
}

// A whole RTMR0 of a published log: all but the ACPI tables, which are given by digest, is computed.
func TestRTMR0AgreesWithPublishedLog(t *testing.T) {
	raw := vectors.Read(t, vectors.Dir(t), "tdx/trustee/CCEL_data_ovmf")
	log, err := ccel.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	var acpi []measurement.Digest
	for _, e := range log.Events {
		if e.Type == ccel.EvPlatformConfig {
			acpi = append(acpi, e.Digest)
		}
	}
	d := description(t, older)
	d.ACPI = &tdx.ACPI{
		Loader: tdx.Content{Digest: acpi[0]}, RSDP: tdx.Content{Digest: acpi[1]},
		Tables: tdx.Content{Digest: acpi[2]},
	}
	var ours, theirs measurement.Trace
	got := must(t)(tdx.RTMR0(d, &ours))
	want := log.Replay(&theirs)[0]
	if !got.Equal(want) {
		t.Errorf("RTMR0 = %s, want %s", got, want)
		for i, s := range ours.Steps {
			t.Logf("%d %s", i, s)
		}
	}
	// RTMR1 and RTMR2 of the log cover a kernel that is not published; their shape is compared instead.
	k := d
	for _, e := range log.Events {
		if e.Type == ccel.EvBootApplication {
			k.Kernel = tdx.Content{Digest: e.Digest}
		}
	}
	k.Profile = profile(t, "edk2-stable202408+qemu-10.2")
	if got := must(t)(tdx.RTMR1(k, nil)); !got.Equal(log.Replay(nil)[1]) {
		t.Errorf("RTMR1 = %s, want %s", got, log.Replay(nil)[1])
	}
}

// dstack's log is of a newer firmware, whose separator moved to RTMR1.
func TestRTMR1AgreesWithPublishedLog(t *testing.T) {
	log, err := ccel.Parse(vectors.Read(t, vectors.Dir(t), "tdx/dstack/ccel.bin"))
	if err != nil {
		t.Fatal(err)
	}
	d := tdx.Description{Profile: profile(t, "edk2-stable202502+qemu-10.2")}
	for _, e := range log.Events {
		if e.Type == ccel.EvBootApplication {
			d.Kernel = tdx.Content{Digest: e.Digest}
		}
	}
	if got := must(t)(tdx.RTMR1(d, nil)); !got.Equal(log.Replay(nil)[1]) {
		t.Errorf("RTMR1 = %s, want %s", got, log.Replay(nil)[1])
	}
}

// reference is MRTD by its definition, written apart from the package.
func reference(fw []byte, sections []ovmf.TDXSection, twoPass bool) measurement.Digest {
	h := sha512.New384()
	record := func(name string, gpa uint64) {
		b := make([]byte, 128)
		copy(b, name)
		binary.LittleEndian.PutUint64(b[16:], gpa)
		h.Write(b)
	}
	for _, s := range sections {
		if s.Attributes&2 != 0 {
			continue
		}
		for pass := range 2 {
			for p := uint64(0); p < s.Size/4096; p++ {
				if pass == 0 {
					record("MEM.PAGE.ADD", s.GPA+4096*p)
				}
				if (pass == 1) == twoPass && s.Attributes&1 != 0 {
					for c := range uint64(16) {
						record("MR.EXTEND", s.GPA+4096*p+256*c)
						at := uint64(s.Offset) + 4096*p + 256*c
						h.Write(fw[at : at+256])
					}
				}
			}
		}
	}
	return h.Sum(nil)
}

func TestMRTDFollowsItsDefinition(t *testing.T) {
	sections := ovmftest.TDXSections(64 << 10)
	sections[2].Attributes = ovmf.PageAug
	fw := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, TDX: sections, Decoys: true})
	for order, two := range map[tdx.Order]bool{tdx.SinglePass: false, tdx.TwoPass: true} {
		if got, want := must(t)(tdx.MRTD(fw, order, nil, nil)), reference(fw, sections, two); !got.Equal(want) {
			t.Errorf("MRTD(order %d) = %s, want %s", order, got, want)
		}
	}
}

func TestMRTDOfMeasuredHOBNeedsTheHOB(t *testing.T) {
	sections := ovmftest.TDXSections(64 << 10)
	sections[4].Attributes = ovmf.MRExtend
	fw := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, TDX: sections})
	if d, err := tdx.MRTD(fw, tdx.SinglePass, nil, nil); err == nil {
		t.Errorf("MRTD without a HOB = %s, want a refusal", d)
	}
	digest := func(memory uint64) string {
		hob, err := tdx.HOB(sections, memory)
		if err != nil {
			t.Fatal(err)
		}
		return must(t)(tdx.MRTD(fw, tdx.SinglePass, hob, nil)).String()
	}
	if digest(1<<30) == digest(2<<30) {
		t.Error("MRTD of an image with a measured HOB does not depend on the memory")
	}
}

func TestAnySingleBitOfMeasuredInputsChangesTheRegisters(t *testing.T) {
	base := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, TDX: ovmftest.TDXSections(64 << 10)})
	s := ovmftest.TDXSections(64 << 10)[0]
	rapid.Check(t, func(t *rapid.T) {
		fw := slices.Clone(base)
		i := rapid.IntRange(int(s.Offset)*8, len(fw)*8-1).Draw(t, "bit")
		fw[i/8] ^= 1 << (i % 8)
		got, err := tdx.MRTD(fw, tdx.SinglePass, nil, nil)
		if err == nil && got.Equal(must(t)(tdx.MRTD(base, tdx.SinglePass, nil, nil))) {
			t.Fatalf("bit %d of the code is not measured", i)
		}
	})
	kernel := bzImage()
	d := description(t, newer)
	want := must(t)(tdx.RTMR1(d, nil))
	// checksum, address of certificates
	unmeasured := func(at int) bool { return at >= 0x98 && at < 0x9c || at >= 0xe8 && at < 0xec }
	// The size of the certificates is not measured, but with it how much of the file's end is: either is right.
	certificates := func(at int) bool { return at >= 0xec && at < 0xf0 }
	rapid.Check(t, func(t *rapid.T) {
		k := slices.Clone(kernel)
		i := rapid.IntRange(0, len(k)*8-1).Draw(t, "bit")
		k[i/8] ^= 1 << (i % 8)
		e := d
		e.Kernel = tdx.Content{Data: k}
		got, err := tdx.RTMR1(e, nil)
		if err == nil && !certificates(i/8) && got.Equal(want) != unmeasured(i/8) {
			t.Fatalf("bit %d of the kernel: measured = %v", i, !got.Equal(want))
		}
	})
}

func TestInputsReachTheirRegister(t *testing.T) {
	for _, p := range []string{older, newer} {
		for name, change := range map[string]func(*tdx.Description){
			"memory":    func(d *tdx.Description) { d.Memory = 1 << 30 },
			"acpi":      func(d *tdx.Description) { d.ACPI.Tables = content("other") },
			"kernel":    func(d *tdx.Description) { k := bzImage(); k[0x500] ^= 1; d.Kernel.Data = k },
			"initrd":    func(d *tdx.Description) { d.Initrd = content("inItrd") },
			"no initrd": func(d *tdx.Description) { d.Initrd = tdx.Content{} },
			"cmdline":   func(d *tdx.Description) { d.Cmdline += " " },
		} {
			want := map[string][3]bool{
				"memory": {true, p == older, false}, "acpi": {true, false, false}, "kernel": {false, true, false},
				"initrd": {false, false, true}, "no initrd": {false, p == older, true}, "cmdline": {false, false, true},
			}[name]
			a, b := description(t, p), description(t, p)
			change(&b)
			for i, f := range []func(tdx.Description, *measurement.Trace) (measurement.Digest, error){
				tdx.RTMR0,
				tdx.RTMR1, tdx.RTMR2,
			} {
				if got := !must(t)(f(a, nil)).Equal(must(t)(f(b, nil))); got != want[i] {
					t.Errorf("%s: %s changes RTMR%d = %v, want %v", p, name, i, got, want[i])
				}
			}
		}
	}
}

func TestRegistersRefuseWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		profile string
		change  func(*tdx.Description)
		f       func(tdx.Description, *measurement.Trace) (measurement.Digest, error)
	}{
		"acpi":           {older, func(d *tdx.Description) { d.ACPI = nil }, tdx.RTMR0},
		"rsdp":           {older, func(d *tdx.Description) { d.ACPI.RSDP = tdx.Content{} }, tdx.RTMR0},
		"smbios":         {newer, func(d *tdx.Description) { d.SMBIOS = tdx.Content{} }, tdx.RTMR0},
		"kernel":         {newer, func(d *tdx.Description) { d.Kernel = tdx.Content{} }, tdx.RTMR1},
		"patched kernel": {older, func(d *tdx.Description) { d.Kernel = tdx.Content{Digest: make([]byte, 48)} }, tdx.RTMR1},
		"memory":         {older, func(d *tdx.Description) { d.Memory = 0 }, tdx.RTMR1},
	} {
		d := description(t, c.profile)
		c.change(&d)
		if got, err := c.f(d, nil); !errors.Is(err, tdx.ErrMissing) {
			t.Errorf("%s: %s, %v, want ErrMissing", name, got, err)
		}
	}
	d := description(t, newer)
	d.FwCfg = []tdx.Item{{Name: "opt/other", Content: content("x")}}
	if got, err := tdx.RTMR0(d, nil); err == nil {
		t.Errorf("RTMR0 with an unknown fw_cfg item = %s, want a refusal", got)
	}
	d = description(t, older)
	d.FwCfg = []tdx.Item{{Name: "bootorder", Content: content("x")}}
	if got, err := tdx.RTMR0(d, nil); err == nil {
		t.Errorf("RTMR0 with fw_cfg items for an old firmware = %s, want a refusal", got)
	}
}

func TestBootOrderOfADirectBootIsKnown(t *testing.T) {
	d := description(t, newer)
	want := must(t)(tdx.RTMR0(d, nil))
	d.FwCfg = []tdx.Item{
		{Name: "bootorder", Content: content("/rom@genroms/linuxboot_dma.bin\x00")},
		{Name: tdx.BootMenu, Content: content("\x00\x00")},
	}
	if got := must(t)(tdx.RTMR0(d, nil)); !got.Equal(want) {
		t.Errorf("RTMR0 with what QEMU has by default = %s, want %s", got, want)
	}
	d.FwCfg = []tdx.Item{{Name: "bootorder", Content: content("other")}}
	if got := must(t)(tdx.RTMR0(d, nil)); got.Equal(want) {
		t.Error("another boot order does not reach RTMR0")
	}
}

func TestProfiles(t *testing.T) {
	for _, s := range []string{
		"", "edk2-stable202508", "edk2-stable202508+qemu-7.2", "edk2-stable202508+qemu-12.0",
		"edk2-stable201905+qemu-10.1", "edk2-stable202508+qemu-11.0 ",
	} {
		if p, err := tdx.ParseProfile(s); err == nil {
			t.Errorf("ParseProfile(%q) = %s, want a refusal", s, p)
		}
	}
	for s, want := range map[string]bool{
		"edk2-stable202508+qemu-9.2": true, "edk2-stable202411+qemu-10.1": true, "edk2-stable202502+qemu-10.1": false,
		"edk2-stable202502+qemu-10.0": false, "edk2-stable202411+qemu-10.2": false, newer: false,
	} {
		if got := profile(t, s).KernelPatched(); got != want {
			t.Errorf("%s: KernelPatched = %v, want %v", s, got, want)
		}
	}
	if profile(t, "edk2-stable202402+qemu-8.2").Order() != tdx.TwoPass || profile(t, newer).Order() != tdx.SinglePass {
		t.Error("page order does not follow the QEMU release")
	}
}

// signed checks the PE digest against the one that the image's own signer computed: it lies in the
// signature, so any signed image is a known answer.
func TestAuthenticodeAgreesWithTheSigner(t *testing.T) {
	k := signedKernel(t)
	h := sha256.New()
	if err := tdx.Authenticode(k, h); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	opt := le.Uint32(k[0x3c:]) + 24
	at, size := le.Uint32(k[opt+112+32:]), le.Uint32(k[opt+112+36:])
	sum := h.Sum(nil)
	if size == 0 {
		t.Skip("the kernel is not signed")
	}
	if !slices.ContainsFunc(slices.Collect(windows(k[at:at+size], len(sum))), func(w []byte) bool {
		return slices.Equal(w, sum)
	}) {
		t.Errorf("digest %x is not in the kernel's signature", sum)
	}
}
