// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package part makes the parts of a guest image. A part is a program that only some pods need. It is no file of the
// initramfs, which costs every pod memory and time, but a disk of its own: an EROFS image with the program in its root
// directory, and the hash tree of dm-verity behind it. The root hash of each part stands in a list, contract.PartsFile,
// that is a file of the initramfs. So a measurement of the initramfs is one of the parts also.
//
// The same program gives the same bytes.
package part

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/image/verity/partlist"
)

// Part is a part that was made.
type Part struct {
	Name   string // such as contract.PartTrust
	Params verity.Params
	Image  []byte // EROFS image and hash tree
}

// File is the name of the part's file in the directory of the guest image.
func (p Part) File() string { return p.Name + contract.PartSuffix }

// IsFile reports whether a file of an image's directory has the name of a part's file.
func IsFile(name string) bool {
	part, ok := strings.CutSuffix(name, contract.PartSuffix)
	return ok && partlist.IsName(part)
}

// Build makes the parts of programs, which are files by the names of their parts. Each program is static and has the
// name of its part, after "coco-" instead of "part-", as "coco-trust" for contract.PartTrust.
func Build(ctx context.Context, programs map[string]string) ([]Part, error) {
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	slices.Sort(names)
	var parts []Part
	for _, name := range names {
		p, err := build(ctx, name, programs[name])
		if err != nil {
			return nil, fmt.Errorf("image build: part %q of %s: %w", name, programs[name], err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// Program is the name of a part's program in the part's root directory.
func Program(name string) string { return "coco-" + strings.TrimPrefix(name, contract.PartPrefix) }

func build(ctx context.Context, name, file string) (Part, error) {
	if !partlist.IsName(name) {
		return Part{}, fmt.Errorf("the name is not one such as %s", contract.PartTrust)
	}
	program, err := os.ReadFile(file)
	if err != nil {
		return Part{}, err
	}
	if err := checkStatic(program); err != nil {
		return Part{}, err
	}
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	err = errors.Join(w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: Program(name), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}))
	if err != nil {
		return Part{}, err
	}
	if _, err := w.Write(program); err != nil {
		return Part{}, err
	}
	if err := w.Close(); err != nil {
		return Part{}, err
	}
	tree, err := erofs.FromTar(ctx, bytes.NewReader(packed.Bytes()), nil)
	if err != nil {
		return Part{}, err
	}
	p := Part{Name: name}
	p.Image, p.Params, err = seal(ctx, tree)
	return p, errors.Join(err, tree.Close())
}

// seal writes the image of a tree and its hash tree.
func seal(ctx context.Context, tree *erofs.Tree) ([]byte, verity.Params, error) {
	out := memory(make([]byte, uint64(tree.Size())+verity.TreeSize(uint64(tree.Size())/verity.BlockSize))) //nolint:gosec // a size
	w, err := verity.NewWriter(out, tree.Size(), verity.Salt)
	if err != nil {
		return nil, verity.Params{}, err
	}
	defer w.Close()
	if err := tree.Write(ctx, w); err != nil {
		return nil, verity.Params{}, err
	}
	params, err := w.Finish()
	return out, params, err
}

// memory is an io.WriterAt of a fixed size.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, fmt.Errorf("%d bytes at %d of %d", len(p), off, len(m))
	}
	return copy(m[off:], p), nil
}

// checkStatic refuses programs that need an interpreter: a part has no other file.
func checkStatic(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("no program for Linux: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the program is not static; build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// Line is the part's line in contract.PartsFile.
func (p Part) Line() partlist.Line {
	return partlist.Line{Name: p.Name, RootHash: p.Params.Hex(), Blocks: p.Params.DataBlocks}
}

// List is the content of contract.PartsFile.
func List(parts []Part) []byte {
	lines := make([]partlist.Line, len(parts))
	for i, p := range parts {
		lines[i] = p.Line()
	}
	return partlist.Write(lines)
}

// Verify compares the file of a part in the directory of a guest image with the part's root hash.
func Verify(dir string, l partlist.Line) error {
	f, err := os.Open(filepath.Join(dir, l.Name+contract.PartSuffix))
	if err != nil {
		return fmt.Errorf("part %s: %w", l.Name, err)
	}
	defer f.Close()
	if err := verity.Verify(context.Background(), f, l.Params()); err != nil {
		return fmt.Errorf("part %s, %s: %w", l.Name, f.Name(), err)
	}
	return nil
}
