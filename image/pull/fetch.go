// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/crypt"
)

// layerTypes are the media types of layers, without that of the encryption, with their compression.
var layerTypes = map[string]string{
	"application/vnd.oci.image.layer.v1.tar":            "",
	"application/vnd.oci.image.layer.v1.tar+gzip":       "gzip",
	"application/vnd.oci.image.layer.v1.tar+zstd":       "zstd",
	"application/vnd.docker.image.rootfs.diff.tar":      "",
	"application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}

// freeRatio is how many bytes a layer may have whatever its size was when compressed: files of zeros are common.
const freeRatio = 32 << 20

// fetch writes a layer's tar to a file. On an error, nothing of the file may be used.
func (w *work) fetch(ctx context.Context, d descriptor, diff string, to *os.File) (err error) {
	media := strings.TrimSuffix(d.MediaType, crypt.Suffix)
	compression, known := layerTypes[media]
	if !known {
		return fmt.Errorf("layers of type %.100q are not pulled", d.MediaType)
	}
	w.doing("fetch")
	blob, err := w.repo.Blob(ctx, d.Digest, d.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	var in io.Reader = &meter{blob, w}
	if crypt.Encrypted(d.MediaType) {
		if w.Keys == nil {
			return errors.New("the layer is encrypted, and initdata names no key broker that has its key")
		}
		if in, err = crypt.Decrypt(ctx, in, d.Annotations, w.Keys); err != nil {
			return err
		}
	}
	plain, end, err := decompress(compression, in, w.Limits.Window)
	if err != nil {
		return verdict(in, err)
	}
	defer end()
	sum := sha256.New()
	b := &bound{w: w, to: io.MultiWriter(to, sum)}
	_, err = io.CopyBuffer(onlyWriter{b}, plain, make([]byte, 128<<10))
	if b.err != nil {
		return b.err
	}
	if err := verdict(in, err); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diff {
		return fmt.Errorf("its content has digest %s: it is another layer, or was changed", got)
	}
	return nil
}

// verdict reads a layer to its end, where the verdicts on its bytes and its ciphertext are. They explain why it could
// not be decompressed.
func verdict(in io.Reader, wrong error) error {
	n, err := io.Copy(io.Discard, in)
	switch {
	case err != nil:
		return err
	case wrong != nil:
		return fmt.Errorf("decompress: %w", wrong)
	case n != 0:
		return fmt.Errorf("there are %d bytes after the end of the compressed layer", n)
	}
	return nil
}

// decompress returns a reader of what is compressed, and how to free it.
func decompress(how string, in io.Reader, window uint64) (io.Reader, func(), error) {
	switch how {
	case "gzip":
		r, err := gzip.NewReader(bufio.NewReaderSize(in, 64<<10))
		return r, func() {}, err
	case "zstd":
		r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window))
		if err != nil {
			return nil, nil, err
		}
		return r, r.Close, nil
	}
	return in, func() {}, nil
}

// onlyWriter hides other methods, so that a copy goes through the buffer that was made for it.
type onlyWriter struct{ io.Writer }

// meter tells how much of a layer was fetched.
type meter struct {
	io.Reader
	w *work
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.w.now.Done += int64(n)
	m.w.tell()
	return n, err
}

// bound refuses what decompresses to too much.
type bound struct {
	w   *work
	to  io.Writer
	n   int64 // of this layer
	err error
}

func (b *bound) Write(p []byte) (n int, err error) {
	b.n += int64(len(p))
	b.w.bytes += int64(len(p))
	l := b.w.Limits
	switch {
	case b.w.bytes > l.Bytes:
		b.err = fmt.Errorf("the layers have more than %d bytes when they are decompressed", l.Bytes)
	case b.n > freeRatio && b.n > freeRatio+l.Ratio*b.w.now.Done:
		b.err = fmt.Errorf("the layer decompresses to more than %d times its size", l.Ratio)
	default:
		if n, b.err = b.to.Write(p); errors.Is(b.err, unix.ENOSPC) {
			b.err = fmt.Errorf("the guest has no room for its layers any more: %w", b.err)
		}
	}
	return n, b.err
}
