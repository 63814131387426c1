// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"fmt"
	"strconv"
	"strings"
)

// Policy is the guest's policy: what the owner of the guest allows the host to do.
type Policy uint64

// Bits of Policy: SEV-SNP firmware ABI, table "Guest Policy". Bits 0 to 15 are the lowest ABI version of the firmware.
const (
	PolicySMT              Policy = 1 << 16
	policyOne              Policy = 1 << 17 // always set
	PolicyMigrateMA        Policy = 1 << 18
	PolicyDebug            Policy = 1 << 19
	PolicySingleSocket     Policy = 1 << 20
	PolicyCXLAllow         Policy = 1 << 21
	PolicyMemAES256XTS     Policy = 1 << 22
	PolicyRAPLDis          Policy = 1 << 23
	PolicyCiphertextHiding Policy = 1 << 24
	PolicyPageSwapDisable  Policy = 1 << 25
	policyKnown                   = 1<<26 - 1
)

var policyNames = map[int]string{
	16: "smt", 18: "migrate_ma", 19: "debug", 20: "single_socket", 21: "cxl_allow", 22: "mem_aes_256_xts", 23: "rapl_dis",
	24: "ciphertext_hiding_dram", 25: "page_swap_disable",
}

// PlatformInfo is the state of the platform.
type PlatformInfo uint64

// Bits of PlatformInfo: SEV-SNP firmware ABI, field PLATFORM_INFO.
const (
	PlatformSMT              PlatformInfo = 1 << 0
	PlatformTSME             PlatformInfo = 1 << 1
	PlatformECC              PlatformInfo = 1 << 2
	PlatformRAPLDis          PlatformInfo = 1 << 3
	PlatformCiphertextHiding PlatformInfo = 1 << 4
	PlatformAliasCheck       PlatformInfo = 1 << 5
	PlatformTIO              PlatformInfo = 1 << 7
	platformKnown                         = 0xBF
)

var platformNames = map[int]string{
	0: "smt_en", 1: "tsme_en", 2: "ecc_en", 3: "rapl_dis", 4: "ciphertext_hiding_dram_en", 5: "alias_check_complete",
	7: "tio_en",
}

// KeyInfo says how a report was signed.
type KeyInfo uint32

// SigningKey is the kind of key that signed a report.
type SigningKey uint8

// Kinds of keys. Other values than these are refused.
const (
	VCEK SigningKey = 0
	VLEK SigningKey = 1
	None SigningKey = 7 // the report is not signed
)

// String returns AMD's name of the key.
func (k SigningKey) String() string {
	switch k {
	case VCEK:
		return "vcek"
	case VLEK:
		return "vlek"
	case None:
		return "none"
	}
	return strconv.Itoa(int(k))
}

// AuthorKey tells whether the digest of an author key is in the report.
func (k KeyInfo) AuthorKey() bool { return k&1 != 0 }

// MaskChipKey tells whether the host hides the chip: its key signs nothing, and CHIP_ID is zero.
func (k KeyInfo) MaskChipKey() bool { return k&2 != 0 }

// SigningKey returns the kind of the key that signed the report.
func (k KeyInfo) SigningKey() SigningKey { return SigningKey(k >> 2 & 7) }

// rawTCB is a TCB_VERSION as it stands in a report.
type rawTCB [8]byte

// TCB are the patch levels of a platform's parts. A higher number is newer.
type TCB struct {
	FMC        uint8 `json:"fmc"` // Turin only
	Bootloader uint8 `json:"bootloader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}

// String returns the levels in AMD's order.
func (t TCB) String() string {
	return fmt.Sprintf("fmc %d, bootloader %d, tee %d, snp %d, microcode %d",
		t.FMC, t.Bootloader, t.TEE, t.SNP, t.Microcode)
}

// part is one level of a TCB.
type part struct {
	name  string
	level uint8
}

func (t TCB) parts() []part {
	return []part{
		{"fmc", t.FMC}, {"bootloader", t.Bootloader}, {"tee", t.TEE}, {"snp", t.SNP}, {"microcode", t.Microcode},
	}
}

// Product is a line of processors that has a root of its own.
type Product string

// Products.
const (
	Milan Product = "Milan"
	Genoa Product = "Genoa"
	Turin Product = "Turin"
)

// products are all that are known, oldest first.
var products = []Product{Milan, Genoa, Turin}

// productOf returns the line of a processor; Siena and Bergamo belong to Genoa.
func productOf(c CPU) (Product, bool) {
	switch {
	case c.Family == 0x19 && c.Model <= 0x0F:
		return Milan, true
	case c.Family == 0x19 && (c.Model >= 0x10 && c.Model <= 0x1F || c.Model >= 0xA0 && c.Model <= 0xAF):
		return Genoa, true
	case c.Family == 0x1A && c.Model <= 0x11:
		return Turin, true
	}
	return "", false
}

// namedBy tells whether a certificate's product name, such as Milan-B0, belongs to the line.
func (p Product) namedBy(name string) bool {
	line, _, _ := strings.Cut(name, "-")
	return line == string(p) || p == Genoa && (line == "Bergamo" || line == "Siena")
}

// TCB gives the bytes of a TCB_VERSION their meaning. ok is false if a reserved byte is not zero.
func (p Product) TCB(raw [8]byte) (t TCB, ok bool) {
	if p == Turin {
		return TCB{FMC: raw[0], Bootloader: raw[1], TEE: raw[2], SNP: raw[3], Microcode: raw[7]},
			raw[4]|raw[5]|raw[6] == 0
	}
	return TCB{Bootloader: raw[0], TEE: raw[1], SNP: raw[6], Microcode: raw[7]}, raw[2]|raw[3]|raw[4]|raw[5] == 0
}

// hwidLen is how much of CHIP_ID a certificate of the product names.
func (p Product) hwidLen() int {
	if p == Turin {
		return 8
	}
	return 64
}
