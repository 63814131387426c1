// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/coco-shim/coco/internal/worktest"
)

// fakeELF makes an x86-64 ELF file with a .modinfo section and a note segment.
func fakeELF(t testing.TB, modinfo, note string) []byte {
	t.Helper()
	const ehdr, phdr = 64, 56
	names := "\x00.modinfo\x00.shstrtab\x00"
	off := uint64(ehdr + phdr)
	body := note + modinfo + names
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: ehdr, Phentsize: phdr,
		Phnum: 1, Ehsize: ehdr, Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: off + uint64(len(body)),
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	modOff, namesOff := off+uint64(len(note)), off+uint64(len(note)+len(modinfo))
	var b bytes.Buffer
	for _, v := range []any{
		h,
		elf.Prog64{Type: uint32(elf.PT_NOTE), Off: off, Filesz: uint64(len(note)), Memsz: uint64(len(note))},
		[]byte(body),
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: modOff, Size: uint64(len(modinfo))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: namesOff, Size: uint64(len(names))},
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func pvhNote() string {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 4)
	b = le.AppendUint32(b, 8)
	b = le.AppendUint32(b, xenNotePhys32Entry)
	return string(b) + "Xen\x00" + "\x00\x00\x00\x01\x00\x00\x00\x00"
}

func xzBytes(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// fakeModules makes a kernel package's modules; values are .modinfo words.
func fakeModules(t *testing.T, mods map[string]string) moduleSet {
	t.Helper()
	s := moduleSet{files: map[string]tarFile{}, builtin: map[string]bool{"builtin_one": true}}
	for name, info := range mods {
		ko := fakeELF(t, strings.ReplaceAll(info, " ", "\x00")+"\x00", "")
		s.files[name] = tarFile{path: "usr/lib/modules/6.12/kernel/" + name + ".ko.xz", data: xzBytes(t, ko)}
	}
	return s
}

// allWanted gives every wanted module without dependencies, changed by more.
func allWanted(more map[string]string) map[string]string {
	m := map[string]string{}
	for _, w := range wantedModules {
		for _, n := range w.names {
			m[n] = "depends="
		}
	}
	for k, v := range more {
		m[k] = v
	}
	return m
}

func TestClosureOrdersDependenciesFirst(t *testing.T) {
	s := fakeModules(t, allWanted(map[string]string{
		"sd_mod":      "license=GPL depends=scsi-mod,builtin_one",
		"virtio_scsi": "depends=scsi_mod",
		"scsi_mod":    "depends=scsi_common",
		"scsi_common": "depends=",
		"dm_crypt":    "depends=scsi_common",
		"llc":         "depends=",
		"bridge":      "alias=rtnl-link-bridge depends=llc,scsi-common,builtin_one",
	}))
	mods, err := s.closure()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, m := range mods {
		at[m.name] = i + 1
		if strings.HasSuffix(m.path, ".xz") != m.packed() {
			t.Errorf("path %s is of a module of section %s", m.path, m.section)
		}
	}
	for _, pair := range [][2]string{{"scsi_common", "scsi_mod"}, {"scsi_mod", "virtio_scsi"}, {"virtio_scsi", "sd_mod"}} {
		if at[pair[0]] == 0 || at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s is at %d and %s at %d, want it before", pair[0], at[pair[0]], pair[1], at[pair[1]])
		}
	}
	list := string(moduleList(mods))
	if want := "# demand\nllc /usr/lib/modules/6.12/kernel/llc.ko.xz\nbridge /usr/lib/modules/6.12/kernel/bridge.ko.xz " +
		"llc,scsi_common\n"; !strings.HasSuffix(list, want) {
		t.Errorf("modules list ends with %q, want %q", list[strings.Index(list, "# demand"):], want)
	}
	if got, want := string(aliasList(mods)), "rtnl-link-bridge bridge\n"; got != want {
		t.Errorf("aliases = %q, want %q", got, want)
	}
	if n := strings.Count(list, "scsi_common /usr/lib/modules/6.12/kernel/scsi_common.ko\n"); n != 1 {
		t.Errorf("modules list has scsi_common %d times, want once:\n%s", n, list)
	}
	if strings.Index(list, "scsi_common ") > strings.Index(list, "# lazy") {
		t.Errorf("scsi_common is only loaded on demand:\n%s", list)
	}
}

func TestClosureRefuses(t *testing.T) {
	without := allWanted(nil)
	delete(without, "erofs")
	for _, tt := range []struct {
		name string
		mods map[string]string
		want string
	}{
		{"a module that is not there", without, "no module erofs"},
		{"a dependency that is not there", allWanted(map[string]string{"erofs": "depends=gone"}), "no module gone"},
		{
			"a circle", allWanted(map[string]string{"erofs": "depends=overlay", "overlay": "depends=erofs"}),
			"depends on itself",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := fakeModules(t, tt.mods).closure()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("closure() = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestParseModinfo(t *testing.T) {
	got := parseModinfo([]byte("license=GPL\x00depends=a-b,c\x00softdep=pre: crc32c x-y post: z\x00name=m\x00"))
	want := moduleInfo{depends: []string{"a_b", "c"}, softPre: []string{"crc32c", "x_y"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(moduleInfo{})); diff != "" {
		t.Errorf("parseModinfo (-want +got):\n%s", diff)
	}
}

func TestStripSignature(t *testing.T) {
	info := make([]byte, moduleSigInfo)
	binary.BigEndian.PutUint32(info[8:], 3)
	signed := "module" + "SIG" + string(info) + moduleSigMagic
	binary.BigEndian.PutUint32(info[8:], 1000)
	tooLong := "module" + "SIG" + string(info) + moduleSigMagic
	for _, tt := range []struct{ name, in, want string }{
		{"a signed module", signed, "module"},
		{"an unsigned module", "module", "module"},
		{"a signature longer than the file", tooLong, tooLong},
		{"nothing but the magic", moduleSigMagic, moduleSigMagic},
	} {
		if got := string(stripSignature([]byte(tt.in))); got != tt.want {
			t.Errorf("%s: stripSignature(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
}

// fakeBzImage wraps a payload as the kernel's build does.
func fakeBzImage(payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*512, 2*512+len(payload))
	b[setupSects] = 1
	copy(b[setupMagic:], "HdrS")
	le.PutUint16(b[setupVersion:], 0x20f)
	le.PutUint32(b[setupPayloadLen:], uint32(len(payload)))
	return append(b, payload...)
}

func withSize(packed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(n))
}

func zstdBytes(t testing.TB, b []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(b, nil)
}

func TestExtractVmlinux(t *testing.T) {
	kernel := fakeELF(t, "", pvhNote())
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write(kernel); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		payload []byte
	}{
		{"zstd", withSize(zstdBytes(t, kernel), len(kernel))},
		{"xz", withSize(xzBytes(t, kernel), len(kernel))},
		{"gzip", gz.Bytes()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ExtractVmlinux(fakeBzImage(tt.payload))
			if err != nil || !bytes.Equal(got, kernel) {
				t.Errorf("ExtractVmlinux: error %v, equal %v", err, bytes.Equal(got, kernel))
			}
		})
	}
}

func TestExtractVmlinuxRefuses(t *testing.T) {
	kernel := fakeELF(t, "", pvhNote())
	old := fakeBzImage(withSize(zstdBytes(t, kernel), len(kernel)))
	old[setupVersion] = 0x05
	outside := fakeBzImage([]byte("12345678"))
	binary.LittleEndian.PutUint32(outside[setupPayloadLen:], 9)
	noPVH := fakeELF(t, "", "")
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"an empty file", nil, "no setup header"},
		{"an ELF file", kernel, "no setup header"},
		{"an old boot protocol", old, "older than"},
		{"a payload outside the file", outside, "lies outside"},
		{"an unknown compression", fakeBzImage([]byte("BZh9....\x01\x00\x00\x00")), "neither zstd"},
		{"a wrong size", fakeBzImage(withSize(zstdBytes(t, kernel), len(kernel)-1)), "another size"},
		{"a huge size", fakeBzImage(withSize(zstdBytes(t, kernel), 1<<31)), "more than"},
		{"a payload that is no kernel", fakeBzImage(withSize(zstdBytes(t, []byte("hello")), 5)), "no ELF"},
		{"a kernel without PVH", fakeBzImage(withSize(zstdBytes(t, noPVH), len(noPVH))), "no PVH entry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ExtractVmlinux(tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ExtractVmlinux = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	kernel := fakeELF(f, "", pvhNote())
	f.Add(fakeBzImage(withSize(zstdBytes(f, kernel), len(kernel))))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		_, _ = ExtractVmlinux(in)
	})
}

func FuzzModinfo(f *testing.F) {
	f.Add(fakeELF(f, "depends=a,b\x00softdep=pre: c\x00", ""))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		if len(stripSignature(in)) > len(in) {
			t.Error("stripSignature grew its input")
		}
		_, _ = modinfo(in)
	})
}
