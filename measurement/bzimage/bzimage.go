// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bzimage reads the beginning of an x86 Linux kernel and decides whether a confidential VM could boot it, and
// whether it would measure its command line and initrd. It does not decompress anything.
package bzimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// HeadSize is as much of a kernel as Parse looks at; the text of its version lies within.
const HeadSize = 32 << 10

// Offsets in the setup header (Linux, Documentation/arch/x86/boot.rst).
const (
	offPE         = 0x3c
	offSetupSects = 0x1f1
	offMagic      = 0x202
	offProtocol   = 0x206
	offVersion    = 0x20e
	offLoadFlags  = 0x211
	offInitrdMax  = 0x22c
	offXLoadFlags = 0x236
	headerEnd     = 0x268

	sector       = 512
	minProtocol  = 0x20c // Linux 3.8, the first with xloadflags
	loadedHigh   = 1 << 0
	kernel64     = 1 << 0
	above4G      = 1 << 1
	machineX8664 = 0x8664
	maxVersion   = 256
)

// Kernel is what is known of a kernel.
type Kernel struct {
	// Release is the kernel's release, such as "6.12.48+deb13-amd64"; empty if the header does not say.
	Release string
	// EFI says that it is a program for 64-bit EFI firmware too.
	EFI bool

	initrdMax uint64
}

// others are files that get mistaken for kernels of this kind.
var others = []struct {
	at    int
	magic string
	what  string
}{
	{0, "\x7fELF", "an ELF file (vmlinux): QEMU starts it without hashing it, so nothing vouches for it; use the " +
		"bzImage of the same build (vmlinuz)"},
	{4, "zimg", "an EFI zboot image, which QEMU cannot start on x86"},
	{0x38, "ARM\x64", "a kernel for arm64"},
	{0x38, "RSC\x05", "a kernel for RISC-V"},
	{0, "\x1f\x8b", "compressed with gzip as a whole; unpack it"},
	{0, "\x28\xb5\x2f\xfd", "compressed with zstd as a whole; unpack it"},
	{0, "\xfd7zXZ", "compressed with xz as a whole; unpack it"},
	{0, "\x02\x21\x4c\x18", "compressed with lz4 as a whole; unpack it"},
	{0, "BZh", "compressed with bzip2 as a whole; unpack it"},
	{0, "IGVM", "an IGVM file"},
	{0, "MZ", "an EFI program without a setup header, such as a unified kernel image"},
}

// Parse reads the first bytes, up to HeadSize, of a kernel of the given size. Its error says why neither QEMU nor Cloud
// Hypervisor would boot it in a confidential VM.
func Parse(head []byte, size int64) (k Kernel, err error) {
	if size == 0 {
		return k, errors.New("is empty")
	}
	le := binary.LittleEndian
	if len(head) < headerEnd || string(head[offMagic:offMagic+4]) != "HdrS" {
		for _, o := range others {
			if len(head) > o.at && bytes.HasPrefix(head[o.at:], []byte(o.magic)) {
				return k, fmt.Errorf("is %s", o.what)
			}
		}
		return k, errors.New("is not a bzImage: it has no setup header")
	}
	setup := (int64(head[offSetupSects]) + 1) * sector
	if head[offSetupSects] == 0 {
		setup = 5 * sector
	}
	flags := le.Uint16(head[offXLoadFlags:])
	switch protocol := le.Uint16(head[offProtocol:]); {
	case protocol < minProtocol:
		return k, fmt.Errorf("has boot protocol %#x, older than any that runs in a confidential VM", protocol)
	case head[offLoadFlags]&loadedHigh == 0:
		return k, errors.New("is a zImage, which is loaded below 1 MiB")
	case flags&kernel64 == 0:
		return k, errors.New("is a 32-bit kernel")
	case setup >= size:
		return k, fmt.Errorf("is cut off: its setup alone has %d bytes, the file %d", setup, size)
	}
	k.initrdMax = uint64(le.Uint32(head[offInitrdMax:]))
	if flags&above4G != 0 {
		k.initrdMax = 1<<32 - 1
	}
	k.Release, k.EFI = release(head), efi(head)
	return k, nil
}

// release is the first word of the version that the header points to.
func release(head []byte) string {
	at := int(binary.LittleEndian.Uint16(head[offVersion:]))
	if at == 0 || at+sector >= len(head) {
		return ""
	}
	text := head[at+sector : min(at+sector+maxVersion, len(head))]
	n := bytes.IndexFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
	if n < 0 {
		return ""
	}
	return string(text[:n])
}

// efi tells whether the header is that of an EFI program for x86-64.
func efi(head []byte) bool {
	if string(head[:2]) != "MZ" {
		return false
	}
	at := uint64(binary.LittleEndian.Uint32(head[offPE:]))
	return at+6 <= uint64(len(head)) && string(head[at:at+4]) == "PE\x00\x00" &&
		binary.LittleEndian.Uint16(head[at+4:]) == machineX8664
}

// version reads a release's first two numbers.
func version(release string) (major, minor int, ok bool) {
	first, rest, _ := strings.Cut(release, ".")
	n := 0
	for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	major, err := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(rest[:n])
	ok = err == nil && err2 == nil && (n == len(rest) || strings.ContainsRune(".+~_-", rune(rest[n])))
	return major, minor, ok && major > 0
}

// backported tells releases of distributions that bring newer features into old kernels: Red Hat's, and those for TDX.
func backported(release string) bool {
	if strings.HasSuffix(release, "-intel") || strings.Contains(release, "-tdx") {
		return true
	}
	_, rest, ok := strings.Cut(release, ".el")
	return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}

// RTMR2 says what is wrong with the second measurement register of a TD that boots this kernel. Since Linux 6.9 the
// kernel's EFI stub measures command line and initrd into it; older ones leave it at zero, so that nothing vouches for
// either. Kernels of distributions that backport, and ones that do not say their version, are doubtful only.
func (k Kernel) RTMR2() (doubt, problem error) {
	major, minor, ok := version(k.Release)
	if !ok {
		return fmt.Errorf("its release %q tells no version: kernels before 6.9 measure neither command line nor initrd "+
			"into RTMR2", k.Release), nil
	}
	if major > 6 || major == 6 && minor >= 9 {
		return nil, nil
	}
	err := fmt.Errorf("release %s measures neither command line nor initrd into RTMR2, which Linux does since 6.9",
		k.Release)
	if backported(k.Release) {
		return fmt.Errorf("%w; only if its distributor has backported that, RTMR2 will be as computed", err), nil
	}
	return nil, err
}

// Memory that QEMU keeps free of the initrd below the end of low memory, and where that ends at most (pc_q35.c,
// x86-common.c).
const (
	acpiSpace = 0x28000
	mostLow   = 0xb0000000
	splitLow  = 0x80000000
)

// Initrd refuses an initrd that QEMU would not load into a VM with so many bytes of memory; 0: unknown.
func (k Kernel) Initrd(size int64, memory uint64) error {
	if size <= 0 {
		return errors.New("is empty")
	}
	limit := k.initrdMax
	if memory > 0 {
		low := memory
		if memory >= mostLow {
			low = splitLow
		}
		limit = min(limit, low-min(low, acpiSpace+1))
	}
	if uint64(size) >= limit {
		return fmt.Errorf("has %d bytes, more than the %d that can be loaded", size, limit)
	}
	return nil
}
