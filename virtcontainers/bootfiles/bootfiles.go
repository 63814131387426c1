// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootfiles opens boot chains and reads the parts of them that package plan/launch needs. It reads through the
// descriptors that the VMM gets; their offsets stay where they are.
package bootfiles

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/bzimage"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/plan/launch"
)

// maxFirmware is far above any real image; QEMU's own limit is lower.
const maxFirmware = 64 << 20

// magicSize is as much of a firmware as tells of which kind it is.
const magicSize = 4

// Open opens a boot chain. Close closes it.
func Open(files configs.BootFiles) (boot hypervisor.Boot, err error) {
	boot.Cmdline = files.Cmdline
	for _, f := range []struct {
		path string
		to   **os.File
	}{{files.Kernel, &boot.Kernel}, {files.Initrd, &boot.Initrd}, {files.Firmware, &boot.Firmware}} {
		if f.path == "" {
			continue
		}
		file, err := os.Open(f.path)
		if err != nil {
			return hypervisor.Boot{}, errors.Join(err, Close(boot))
		}
		*f.to = file
	}
	return boot, nil
}

// Close closes the files of a boot chain. It is idempotent.
func Close(boot hypervisor.Boot) error {
	var errs []error
	for _, f := range Files(boot) {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Files are those that a boot chain has.
func Files(boot hypervisor.Boot) (files []*os.File) {
	for _, f := range []*os.File{boot.Kernel, boot.Initrd, boot.Firmware} {
		if f != nil {
			files = append(files, f)
		}
	}
	return files
}

// Look reads what launch.Check needs.
func Look(boot hypervisor.Boot) (h launch.Heads, err error) {
	for _, f := range []struct {
		what  string
		file  *os.File
		bytes int64
		to    *launch.Head
	}{
		{"kernel", boot.Kernel, bzimage.HeadSize, &h.Kernel},
		{"initrd", boot.Initrd, 0, &h.Initrd},
		{"firmware", boot.Firmware, magicSize, &h.Firmware},
	} {
		if f.file == nil {
			continue
		}
		if *f.to, err = head(f.file, f.bytes); err != nil {
			return h, fmt.Errorf("%s %s: %w", f.what, f.file.Name(), err)
		}
	}
	return h, nil
}

// head reads the first bytes of a file.
func head(f *os.File, n int64) (launch.Head, error) {
	size, err := sizeOf(f)
	if err != nil {
		return launch.Head{}, err
	}
	b := make([]byte, min(size, n))
	_, err = io.ReadFull(io.NewSectionReader(f, 0, size), b)
	return launch.Head{Name: f.Name(), Size: size, Bytes: b}, err
}

// ParseKernel reads the headers of a kernel.
func ParseKernel(f *os.File) (bzimage.Kernel, error) {
	h, err := head(f, bzimage.HeadSize)
	if err != nil {
		return bzimage.Kernel{}, err
	}
	return bzimage.Parse(h.Bytes, h.Size)
}

// sizeOf is the size of a regular file; others, such as /dev/zero, may never end.
func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, errors.New("is not a regular file")
	}
	return st.Size(), nil
}

// Read reads the firmware and hashes kernel and initrd, all at once and in constant memory but for the
// firmware.
func Read(ctx context.Context, boot hypervisor.Boot) (launch.Chain, error) {
	c := launch.Chain{Initrd: sha256.Sum256(nil)}
	if boot.Firmware == nil || boot.Kernel == nil {
		return c, errors.New("measure the boot chain: it has no firmware or no kernel, so nothing vouches for it")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { c.Firmware, err = Firmware(ctx, boot.Firmware); return err })
	g.Go(func() (err error) { c.Kernel, err = hash(ctx, boot.Kernel); return err })
	if boot.Initrd != nil {
		g.Go(func() (err error) { c.Initrd, err = hash(ctx, boot.Initrd); return err })
	}
	if err := g.Wait(); err != nil {
		return launch.Chain{}, fmt.Errorf("measure the boot chain: %w", err)
	}
	return c, nil
}

// Firmware reads the firmware alone.
func Firmware(ctx context.Context, f *os.File) ([]byte, error) {
	size, err := sizeOf(f)
	if err == nil && size > maxFirmware {
		err = fmt.Errorf("has %d bytes, more than %d", size, maxFirmware)
	}
	if err != nil {
		return nil, fmt.Errorf("firmware %s: %w", f.Name(), err)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(section(ctx, f), b); err != nil {
		return nil, fmt.Errorf("firmware %s: %w", f.Name(), err)
	}
	return b, nil
}

func hash(ctx context.Context, f *os.File) ([sha256.Size]byte, error) {
	_, err := sizeOf(f)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	sum, err := kernelhashes.Read(section(ctx, f))
	if err != nil {
		return sum, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return sum, nil
}

// reader reads a file from its start, without its offset, until the context ends.
type reader struct {
	ctx context.Context // lives as long as one call
	f   *os.File
	at  int64
}

func section(ctx context.Context, f *os.File) io.Reader { return &reader{ctx: ctx, f: f} }

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.f.ReadAt(p, r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
