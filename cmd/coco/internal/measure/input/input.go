// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package input reads the files that the command line of coco measure names: firmware, kernels, initrds. It bounds what
// it reads, since a path may lead to a pipe or a device.
package input

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/measurement/bzimage"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// MaxFirmware is far above any real image; QEMU's own limit is lower.
const MaxFirmware = 64 << 20

// ReadLimited reads a file into memory that may have up to limit bytes, without growing beyond its size.
func ReadLimited(path string, limit int64) ([]byte, error) {
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

// NoEmpty refuses flags that are given without a value. A script whose variable is empty would else get
// the digest of another launch: one without the kernel, say. QEMU refuses them too.
func NoEmpty(cmd *cobra.Command, names ...string) error {
	for _, n := range names {
		if f := cmd.Flags().Lookup(n); f.Changed && f.Value.String() == "" {
			return fmt.Errorf("--%s is empty; leave it out if there is none", n)
		}
	}
	return nil
}

// Boot holds the parts of a direct boot on the command line.
type Boot struct {
	Kernel, Initrd, Cmdline string
	kernelSum, initrdSum    string // SHA-256 in hexadecimal, instead of the files
}

// SumFlags adds the flags that stand for files.
func (b *Boot) SumFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.kernelSum, "kernel-sha256", "", "SHA-256 of the kernel in hexadecimal, instead of the file")
	cmd.Flags().StringVar(&b.initrdSum, "initrd-sha256", "", "SHA-256 of the initrd in hexadecimal, instead of the file")
}

// HasKernel says whether a kernel is given, as a file or by its hash.
func (b Boot) HasKernel() bool { return b.Kernel != "" || b.kernelSum != "" }

// Check refuses combinations that no VMM boots.
func (b Boot) Check() error {
	_, errK := parseSum("--kernel-sha256", b.kernelSum)
	_, errI := parseSum("--initrd-sha256", b.initrdSum)
	kernel := b.HasKernel()
	switch {
	case errK != nil || errI != nil:
		return errors.Join(errK, errI)
	case b.Kernel != "" && b.kernelSum != "":
		return errors.New("give --kernel or --kernel-sha256, not both")
	case b.Initrd != "" && b.initrdSum != "":
		return errors.New("give --initrd or --initrd-sha256, not both")
	case !kernel && (b.Initrd != "" || b.initrdSum != ""):
		return errors.New("--initrd without --kernel: QEMU passes no initrd without a kernel")
	case !kernel && b.Cmdline != "":
		return errors.New("--append without --kernel: QEMU refuses a command line without a kernel")
	case len(b.Cmdline) > launch.MaxCmdline:
		return fmt.Errorf("--append has %d bytes: the kernel takes %d, though all would be measured",
			len(b.Cmdline), launch.MaxCmdline)
	case strings.Contains(b.Cmdline, "\x00"):
		return errors.New("--append has a zero byte, where the command line would end")
	}
	return nil
}

func parseSum(flag, text string) (sum [sha256.Size]byte, err error) {
	if text == "" {
		return sum, nil
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != sha256.Size {
		return sum, fmt.Errorf("%s %.80q is not a SHA-256: want %d hexadecimal digits", flag, text, 2*sha256.Size)
	}
	return [sha256.Size]byte(raw), nil
}

// Hash streams kernel and initrd, both at once and in constant memory. Without a kernel it returns nil.
func (b Boot) Hash(group *errgroup.Group) func() *kernelhashes.Hashes {
	if !b.HasKernel() {
		return func() *kernelhashes.Hashes { return nil }
	}
	kernel, _ := parseSum("", b.kernelSum) // checked
	initrd, _ := parseSum("", b.initrdSum)
	if b.Kernel != "" {
		group.Go(func() (err error) { kernel, err = hashFile(b.Kernel); return err })
	}
	if b.Initrd != "" {
		group.Go(func() (err error) { initrd, err = hashFile(b.Initrd); return err })
	}
	return func() *kernelhashes.Hashes {
		in := &initrd
		if b.Initrd == "" && b.initrdSum == "" {
			in = nil
		}
		h := kernelhashes.New(kernel, in, b.Cmdline)
		return &h
	}
}

// maxBootFile bounds a kernel or initrd: addresses and sizes of the boot protocol have 32 bits.
const maxBootFile = 1<<32 - 1

func hashFile(path string) ([sha256.Size]byte, error) {
	f, err := Open(path)
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

// bounded is a file of which at most maxBootFile bytes are read. A longer one is an error, not a shorter one.
type bounded struct {
	f    *os.File
	left int64
}

// Open opens a kernel or initrd: a file or a pipe, but no device, which may never end.
func Open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.Mode()&os.ModeDevice != 0:
		err = fmt.Errorf("%s is a device", path)
	case st.Size() > maxBootFile:
		err = fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), int64(maxBootFile))
	}
	if err != nil {
		_ = f.Close() // only read
		return nil, err
	}
	return &bounded{f, maxBootFile}, nil
}

func (b *bounded) Close() error { return b.f.Close() }

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.f.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("has more than %d bytes", int64(maxBootFile))
	}
	return n, err
}

// Headers reads a kernel's headers, nil where there is no regular file to look into.
func (b Boot) Headers() (*bzimage.Kernel, error) {
	st, err := os.Stat(b.Kernel)
	if b.Kernel == "" || err != nil || !st.Mode().IsRegular() {
		return nil, nil // the file's reader reports its errors
	}
	f, err := os.Open(b.Kernel)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	k, err := bootfiles.ParseKernel(f)
	return &k, err
}

// Notes says on stderr what a VMM would refuse of the files, though digests can be computed.
func (b Boot) Notes(cmd *cobra.Command) {
	note := func(path string, err error) {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s %v: the VMM would not start it with kernel hashes\n", path, err)
	}
	k, err := b.Headers()
	if err != nil {
		note("--kernel "+b.Kernel, err)
		k = nil
	}
	if b.Initrd == "" {
		return
	}
	st, err := os.Stat(b.Initrd)
	if err != nil || !st.Mode().IsRegular() {
		return // its reader reports the error
	}
	if st.Size() == 0 {
		note("--initrd "+b.Initrd, errors.New("is empty"))
	} else if k == nil {
		return
	} else if err := k.Initrd(st.Size(), 0); err != nil {
		note("--initrd "+b.Initrd, err)
	}
}
