// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"

	"github.com/coco-shim/coco/measurement"
)

const pageSize = 4096

// digest is the state of a launch: SHA-384.
type digest = [sha512.Size384]byte

// pageType is the PAGE_TYPE of SNP_LAUNCH_UPDATE (AMD SEV-SNP firmware ABI, 56860, table 67).
type pageType uint8

const (
	pageNormal     pageType = 1
	pageVMSA       pageType = 2
	pageZero       pageType = 3
	pageUnmeasured pageType = 4
	pageSecrets    pageType = 5
	pageCPUID      pageType = 6
)

func (t pageType) String() string {
	return [...]string{"?", "NORMAL", "VMSA", "ZERO", "UNMEASURED", "SECRETS", "CPUID"}[t]
}

// pageInfoSize is the length of PAGE_INFO, of which the launch digest is the hash.
const pageInfoSize = 0x70

// chain is the running launch digest. Its methods mirror SNP_LAUNCH_UPDATE, one page at a time.
type chain struct {
	info  [pageInfoSize]byte // DIGEST_CUR and the fields that stay
	trace *measurement.Trace
}

func newChain(seed digest, t *measurement.Trace) *chain {
	c := &chain{trace: t}
	copy(c.info[:], seed[:])
	binary.LittleEndian.PutUint16(c.info[0x60:], pageInfoSize)
	return c
}

func (c *chain) ld() digest { return digest(c.info[:sha512.Size384]) }

// page extends the digest by one page. Content is the zero digest for types whose bytes are not measured.
func (c *chain) page(t pageType, gpa uint64, content *digest, source, note string) {
	copy(c.info[0x30:0x60], content[:])
	c.info[0x62] = byte(t) // IMI, the permissions of VMPL 1-3 and the reserved byte stay 0 under KVM
	binary.LittleEndian.PutUint64(c.info[0x68:], gpa)
	next := sha512.Sum384(c.info[:])
	copy(c.info[:], next[:])
	if c.trace == nil {
		return
	}
	s := measurement.Step{
		Register: "launch", Source: source, Kind: t.String(), GPA: gpa, Size: pageSize,
		After: next[:], Note: note,
	}
	if t == pageNormal || t == pageVMSA {
		s.Content = content[:]
	}
	c.trace.Add(s)
}

// normal extends the digest by measured bytes, which are whole pages. Firmware has long runs of
// equal pages (0xff, 0), whose hash is computed once.
func (c *chain) normal(gpa uint64, data []byte, source, note string) {
	var content digest
	var last []byte
	for off := 0; off < len(data); off += pageSize {
		p := data[off : off+pageSize]
		if !bytes.Equal(p, last) {
			content, last = sha512.Sum384(p), p
		}
		c.page(pageNormal, gpa+uint64(off), &content, source, note)
	}
}

// blank extends the digest by pages whose bytes are not measured.
func (c *chain) blank(t pageType, gpa, size uint64, source, note string) {
	var none digest
	for off := uint64(0); off < size; off += pageSize {
		c.page(t, gpa+off, &none, source, note)
	}
}
