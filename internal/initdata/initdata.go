// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package initdata reads CoCo's initdata: a TOML document of a pod's owner with configuration for the
// guest. Its digest goes into a field of the attestation report (HOSTDATA of SNP, MRCONFIGID of TDX), the document
// itself to the guest on a block device. The host can neither change it unseen nor keep it secret.
package initdata

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode"
)

// Limits; Kubernetes lets a pod have 256 KiB of annotations in all.
const (
	MaxText       = 1 << 20   // of the document
	MaxCompressed = 512 << 10 // of its gzip form
)

// version of the document's format.
const version = "0.1.0"

// FilePolicy has the pod's policy.
const FilePolicy = "policy.coco"

// Files, by CoCo's names, that say which key broker a pod has.
const (
	FileAA  = "aa.toml"
	FileCDH = "cdh.toml"
)

// FileAzure says how a guest reaches Azure's services for the endpoints of docs/azure.md.
const FileAzure = "azure.toml"

// FileRego is the file, by CoCo's name, with a policy that is written for Kata's agent.
const FileRego = "policy.rego"

// Document is a valid document.
type Document struct {
	Algorithm string            // "sha256", "sha384" or "sha512"
	Data      map[string]string // files by their names
	Text      []byte            // the document as it was written; the digest is over these bytes

	compressed []byte
}

// FromAnnotation reads the value of a pod's annotation contract.KataInitdata: base64 of gzip of the document.
func FromAnnotation(value string) (*Document, error) {
	if base64.StdEncoding.DecodedLen(len(value)) > MaxCompressed+3 {
		return nil, fmt.Errorf("initdata of %d base64 digits: at most %d bytes are read", len(value), MaxCompressed)
	}
	compressed, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return nil, fmt.Errorf("initdata is not base64: %w", err)
	}
	return FromGzip(compressed)
}

// FromGzip reads the compressed form.
func FromGzip(compressed []byte) (*Document, error) {
	if len(compressed) > MaxCompressed {
		return nil, fmt.Errorf("initdata of %d compressed bytes: at most %d are read", len(compressed), MaxCompressed)
	}
	text, err := unzip(compressed)
	if err != nil {
		return nil, err
	}
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	d.compressed = compressed
	return d, nil
}

// unzip expands one gzip stream.
func unzip(compressed []byte) ([]byte, error) {
	in := &input{Reader: bytes.NewReader(compressed), left: slack}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("initdata is not gzip: %w", err)
	}
	z.Multistream(false)
	var text bytes.Buffer
	for chunk := make([]byte, 16<<10); ; {
		n, err := z.Read(chunk)
		text.Write(chunk[:n])
		in.left += 2 * n
		if text.Len() > MaxText {
			return nil, fmt.Errorf("initdata is larger than %d bytes", MaxText)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("initdata, gzip: %w", err)
		}
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("initdata: %d bytes follow the gzip stream", in.Len())
	}
	return text.Bytes(), nil
}

// slack is how much longer than twice its text a gzip stream may be at any place. No compressor comes near; a stream of
// empty blocks, each with code tables that take time and memory to build, does.
const slack = 64 << 10

// input is a compressed stream of which no more is read than its text accounts for.
type input struct {
	*bytes.Reader
	left int
}

var errEmptyBlocks = errors.New("the stream is much longer than its text")

func (i *input) ReadByte() (byte, error) {
	if i.left--; i.left < 0 {
		return 0, errEmptyBlocks
	}
	return i.Reader.ReadByte()
}

func (i *input) Read(p []byte) (int, error) {
	if i.left <= 0 {
		return 0, errEmptyBlocks
	}
	n, err := i.Reader.Read(p[:min(len(p), i.left)])
	i.left -= n
	return n, err
}

// FromText reads the document itself.
func FromText(text []byte) (*Document, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("initdata is larger than %d bytes", MaxText)
	}
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	if d.compressed = stored(text); len(d.compressed) > MaxCompressed {
		return nil, fmt.Errorf("initdata is larger than the %d bytes that are passed on", MaxCompressed)
	}
	return d, nil
}

func parse(text []byte) (*Document, error) {
	f, err := read(text)
	if err != nil {
		return nil, err
	}
	for key := range f.top {
		if key != "version" && key != "algorithm" {
			return nil, fmt.Errorf("initdata has a key %s; known are version, algorithm and the files of [data]", clip(key))
		}
	}
	if f.top["version"] != version {
		return nil, fmt.Errorf("initdata has version %s, known is %q", clip(f.top["version"]), version)
	}
	d := &Document{Algorithm: strings.Replace(f.top["algorithm"], "sha-", "sha", 1), Data: f.data, Text: text}
	if !slices.Contains([]string{"sha256", "sha384", "sha512"}, d.Algorithm) {
		return nil, fmt.Errorf("initdata has algorithm %s; known are sha256, sha384 and sha512", clip(f.top["algorithm"]))
	}
	for name := range f.data {
		if name == "" || name[0] == '.' ||
			strings.ContainsFunc(name, func(r rune) bool { return r == '/' || !unicode.IsPrint(r) }) {
			return nil, fmt.Errorf("initdata has a file %s, which is no plain name", clip(name))
		}
	}
	return d, nil
}

// Digest is the digest of the document by its own algorithm.
func (d *Document) Digest() []byte {
	switch d.Algorithm {
	case "sha256":
		s := sha256.Sum256(d.Text)
		return s[:]
	case "sha384":
		s := sha512.Sum384(d.Text)
		return s[:]
	}
	s := sha512.Sum512(d.Text)
	return s[:]
}

// sector is the least size of a block device.
const sector = 512

// magic begins a device.
const magic = "initdata"

// DiskID is the serial number of the block device with a pod's document.
const DiskID = magic

// Disk is the block device on which a guest finds the document, in Kata's format: "initdata", the length
// in 64 little-endian bits, the compressed document, zeros.
func (d *Document) Disk() []byte {
	size := len(magic) + 8 + len(d.compressed)
	out := make([]byte, 0, (size+sector-1)/sector*sector)
	out = append(out, magic...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(d.compressed)))
	out = append(out, d.compressed...)
	return out[:cap(out)]
}

// FromDisk is the inverse of Disk. It ignores bytes after the document.
func FromDisk(r io.Reader) (*Document, error) {
	var head [len(magic) + 8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("initdata device: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return nil, errors.New("initdata device does not begin as one")
	}
	n := binary.LittleEndian.Uint64(head[len(magic):])
	if n > MaxCompressed {
		return nil, fmt.Errorf("initdata device: %d bytes, at most %d are read", n, MaxCompressed)
	}
	compressed := make([]byte, n)
	if _, err := io.ReadFull(r, compressed); err != nil {
		return nil, fmt.Errorf("initdata device: %w", err)
	}
	return FromGzip(compressed)
}

// stored is a gzip stream (RFC 1952) of stored blocks (RFC 1951, 3.2.4): a text of this size needs no
// compression, and a compressor none of the shim's memory.
func stored(text []byte) []byte {
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	const most = 1<<16 - 1
	for rest := text; ; rest = rest[most:] {
		n, last := len(rest), byte(1)
		if n > most {
			n, last = most, 0
		}
		out = append(out, last)
		out = binary.LittleEndian.AppendUint16(out, uint16(n)) // at most 65535
		out = binary.LittleEndian.AppendUint16(out, ^uint16(n))
		out = append(out, rest[:n]...)
		if last == 1 {
			break
		}
	}
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(text))
	return binary.LittleEndian.AppendUint32(out, uint32(len(text))) //nolint:gosec // at most MaxText
}
