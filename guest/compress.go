// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how the initramfs is packed.
type Compression string

// The compressions that both this package and the kernel know.
const (
	CompressNone Compression = "none"
	CompressZstd Compression = "zstd"
	CompressGzip Compression = "gzip"
)

const maxInitramfs = 1 << 30

// ParseCompression turns a word into a Compression.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case CompressNone, CompressZstd, CompressGzip:
		return c, nil
	}
	return "", fmt.Errorf("compression %q: not one of none, zstd, gzip", s)
}

// compress packs b. The result depends on b and the library's version only.
func (c Compression) compress(b []byte) ([]byte, error) {
	switch c {
	case CompressNone:
		return b, nil
	case CompressZstd:
		// One thread: the block borders must not depend on the number of processors.
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithWindowSize(1<<23))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		out := enc.EncodeAll(b, nil)
		return out, enc.Close()
	case CompressGzip:
		var out bytes.Buffer
		w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		_, err = w.Write(b)
		err = errors.Join(err, w.Close()) // before Bytes: closing writes the tail
		return out.Bytes(), err
	}
	return nil, fmt.Errorf("compression %q is unknown", c)
}

// decompress unpacks an initramfs of any known compression.
func decompress(r io.Reader) (io.ReadCloser, error) {
	var head [4]byte
	n, err := io.ReadFull(r, head[:])
	if err != nil {
		return nil, fmt.Errorf("read initramfs: %w", err)
	}
	r = io.LimitReader(io.MultiReader(bytes.NewReader(head[:n]), r), maxInitramfs)
	switch {
	case bytes.Equal(head[:], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxInitramfs), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("read initramfs: %w", err)
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(head[:], []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("read initramfs: %w", err)
		}
		return z, nil
	}
	return io.NopCloser(r), nil
}
