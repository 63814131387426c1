// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Offsets of the x86 boot protocol's setup header (Documentation/arch/x86/boot.rst).
const (
	setupSects      = 0x1f1
	setupMagic      = 0x202
	setupVersion    = 0x206
	setupPayloadOff = 0x248
	setupPayloadLen = 0x24c
	setupEnd        = 0x250

	minSetupVersion = 0x208 // the first with payload_offset
	maxVmlinux      = 256 << 20

	// Include/xen/interface/elfnote.h: the entry point that QEMU's -kernel enters in 32-bit mode.
	xenNotePhys32Entry = 18
)

// ExtractVmlinux returns the ELF kernel inside a bzImage. The ELF must carry the PVH entry note,
// without which no VMM can enter it directly.
func ExtractVmlinux(bz []byte) ([]byte, error) {
	payload, err := bzPayload(bz)
	if err != nil {
		return nil, fmt.Errorf("extract vmlinux: %w", err)
	}
	vmlinux, err := inflatePayload(payload)
	if err != nil {
		return nil, fmt.Errorf("extract vmlinux: %w", err)
	}
	if err := checkPVH(vmlinux); err != nil {
		return nil, fmt.Errorf("extract vmlinux: %w", err)
	}
	return vmlinux, nil
}

func bzPayload(bz []byte) ([]byte, error) {
	if len(bz) < setupEnd || string(bz[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, errors.New("not a Linux bzImage: no setup header")
	}
	le := binary.LittleEndian
	if v := le.Uint16(bz[setupVersion:]); v < minSetupVersion {
		return nil, fmt.Errorf("boot protocol %#x is older than %#x", v, minSetupVersion)
	}
	sects := uint64(bz[setupSects])
	if sects == 0 {
		sects = 4 // boot.rst: 0 means 4, for old kernels
	}
	start := (sects+1)*512 + uint64(le.Uint32(bz[setupPayloadOff:]))
	n := uint64(le.Uint32(bz[setupPayloadLen:]))
	if n < 8 || start+n > uint64(len(bz)) {
		return nil, fmt.Errorf("payload of %d bytes at %d lies outside the image of %d bytes", n, start, len(bz))
	}
	return bz[start : start+n], nil
}

func inflatePayload(p []byte) ([]byte, error) {
	// The kernel's build appends the inflated size to every format but gzip, which ends in it.
	want := binary.LittleEndian.Uint32(p[len(p)-4:])
	if want > maxVmlinux {
		return nil, fmt.Errorf("payload claims %d bytes, more than %d", want, maxVmlinux)
	}
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(p[:len(p)-4]), zstd.WithDecoderMaxMemory(maxVmlinux),
			zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(p))
	case bytes.HasPrefix(p, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(bytes.NewReader(p[:len(p)-4]))
	default:
		return nil, fmt.Errorf("payload begins with % x: neither zstd, gzip nor xz", p[:4])
	}
	if err != nil {
		return nil, fmt.Errorf("inflate payload: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(want)+1))
	if err != nil {
		return nil, fmt.Errorf("inflate payload: %w", err)
	}
	if len(out) != int(want) {
		return nil, fmt.Errorf("payload inflates to another size than the %d bytes it states", want)
	}
	return out, nil
}

func checkPVH(vmlinux []byte) error {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return fmt.Errorf("payload is no ELF file: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("kernel is for %v, not x86-64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("kernel notes: %w", err)
		}
		if hasNote(notes, "Xen\x00", xenNotePhys32Entry) {
			return nil
		}
	}
	return errors.New("kernel has no PVH entry (CONFIG_PVH is off)")
}

func hasNote(b []byte, name string, typ uint32) bool {
	le := binary.LittleEndian
	round := func(n uint64) uint64 { return (n + 3) &^ 3 }
	for len(b) >= 12 {
		nameLen, descLen, t := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		end := 12 + round(nameLen) + round(descLen)
		if 12+nameLen > uint64(len(b)) || end > uint64(len(b)) {
			return false
		}
		if t == typ && string(b[12:12+nameLen]) == name {
			return true
		}
		b = b[end:]
	}
	return false
}
