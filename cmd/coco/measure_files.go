// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/measurement/kernelhashes"
)

// maxFirmware is far above any real image; QEMU's own limit is lower.
const maxFirmware = 64 << 20

// readLimited reads a file into memory that may have up to limit bytes, without growing beyond its size.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), limit)
	}
	if !st.Mode().IsRegular() {
		b, err := io.ReadAll(io.LimitReader(f, limit+1))
		if err == nil && int64(len(b)) > limit {
			err = fmt.Errorf("%s has more than %d bytes", path, limit)
		}
		return b, err
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// noEmpty refuses flags that are given without a value. A script whose variable is empty would else get
// the digest of another launch: one without the kernel, say. QEMU refuses them too.
func noEmpty(cmd *cobra.Command, names ...string) error {
	for _, n := range names {
		if f := cmd.Flags().Lookup(n); f.Changed && f.Value.String() == "" {
			return fmt.Errorf("--%s is empty; leave it out if there is none", n)
		}
	}
	return nil
}

// bootFiles are the parts of a direct boot on the command line.
type bootFiles struct {
	kernel, initrd, cmdline string
}

func (b bootFiles) check() error {
	if b.kernel != "" {
		return nil
	}
	if b.initrd != "" {
		return errors.New("--initrd without --kernel: QEMU passes no initrd without a kernel")
	}
	if b.cmdline != "" {
		return errors.New("--append without --kernel: QEMU refuses a command line without a kernel")
	}
	return nil
}

// hash streams kernel and initrd, both at once and in constant memory. Without a kernel it returns nil.
func (b bootFiles) hash(group *errgroup.Group) func() *kernelhashes.Hashes {
	if b.kernel == "" {
		return func() *kernelhashes.Hashes { return nil }
	}
	var kernel, initrd [sha256.Size]byte
	group.Go(func() (err error) { kernel, err = hashFile(b.kernel); return err })
	if b.initrd != "" {
		group.Go(func() (err error) { initrd, err = hashFile(b.initrd); return err })
	}
	return func() *kernelhashes.Hashes {
		in := &initrd
		if b.initrd == "" {
			in = nil
		}
		h := kernelhashes.New(kernel, in, b.cmdline)
		return &h
	}
}

func hashFile(path string) ([sha256.Size]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer f.Close()
	h, err := kernelhashes.Read(f)
	if err != nil {
		return h, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}
