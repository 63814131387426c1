// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Write produces the image: exactly Size bytes, in order. A file whose size is no longer the one
// that the tree was made with is an error. If w is an io.ReaderFrom, file contents go through it.
func (t *Tree) Write(ctx context.Context, w io.Writer) error {
	iw := &imageWriter{ctx: ctx, w: w, tree: t}
	root := t.root.nid()
	if root > 0xffff {
		return errors.New("the root directory's inode is out of reach") // it is the first inode
	}
	iw.bytes(superblock(uint64(len(t.nodes)), uint32(t.blocks), uint16(root))) //nolint:gosec // layOut bounds it
	for i, n := range t.nodes {
		iw.inode(n, uint32(i+1))
	}
	iw.padTo(blocksOf(t.metaEnd) * BlockSize)
	for _, n := range t.nodes {
		if !n.isReg() {
			iw.body(n)
		}
	}
	for _, n := range t.nodes {
		if n.isReg() {
			iw.body(n)
		}
	}
	if iw.err == nil && iw.off != t.blocks*BlockSize {
		return fmt.Errorf("erofs image came out as %d bytes instead of %d", iw.off, t.blocks*BlockSize)
	}
	return iw.err
}

// imageWriter keeps the position and the first error.
type imageWriter struct {
	ctx  context.Context // of the one Write call that it lives in
	w    io.Writer
	tree *Tree
	off  uint64
	buf  []byte
	err  error
}

var zeros [BlockSize]byte

func (iw *imageWriter) bytes(b []byte) {
	if iw.err != nil {
		return
	}
	n, err := iw.w.Write(b)
	iw.off += uint64(n) //nolint:gosec // a length
	iw.err = err
}

func (iw *imageWriter) padTo(off uint64) {
	for iw.err == nil && iw.off < off {
		iw.bytes(zeros[:min(off-iw.off, BlockSize)])
	}
	if iw.err == nil && iw.off != off {
		iw.err = fmt.Errorf("erofs layout is wrong: at byte %d instead of %d", iw.off, off)
	}
}

func (iw *imageWriter) inode(n *node, ino uint32) {
	if iw.err == nil {
		iw.err = iw.ctx.Err()
	}
	iw.padTo(n.offset)
	iw.buf = appendXattrs(appendInode(iw.buf[:0], n, ino), n.xattrs)
	iw.bytes(iw.buf)
	if n.layout != layoutInline {
		return
	}
	switch n.mode & sIFMT {
	case sIFREG:
		iw.file(n)
	case sIFLNK:
		iw.bytes([]byte(n.target))
	case sIFDIR:
		skip := n.bodyBlocks()
		direntBlocks(n, func(b []byte) {
			if skip > 0 {
				skip--
				return
			}
			iw.bytes(b)
		})
	}
}

// body writes the whole blocks of n's data.
func (iw *imageWriter) body(n *node) {
	blocks := n.bodyBlocks()
	if blocks == 0 || iw.err != nil {
		return
	}
	iw.padTo(uint64(n.startBlock) * BlockSize)
	switch n.mode & sIFMT {
	case sIFREG:
		iw.file(n)
	case sIFLNK:
		iw.bytes([]byte(n.target))
	case sIFDIR:
		left := blocks
		direntBlocks(n, func(b []byte) {
			if left > 0 {
				left--
				iw.bytes(b)
			}
		})
	}
	iw.padTo((uint64(n.startBlock) + blocks) * BlockSize)
}

// file copies the content of a regular file.
func (iw *imageWriter) file(n *node) {
	if iw.err != nil {
		return
	}
	r, err := iw.tree.src.open(n)
	if err != nil {
		iw.err = pathError("read", n.path(), err)
		return
	}
	defer r.Close()
	lim := &io.LimitedReader{R: ctxReader{iw.ctx, r}, N: int64(n.size)} //nolint:gosec // from an int64
	got, err := io.Copy(iw.w, lim)
	iw.off += uint64(got) //nolint:gosec // a length
	switch {
	case err != nil:
		iw.err = pathError("copy", n.path(), err)
	case uint64(got) != n.size: //nolint:gosec // likewise
		iw.err = pathError("read", n.path(), fmt.Errorf("file shrank from %d to %d bytes while the layer was being built",
			n.size, got))
	}
}

// ctxReader ends a long copy when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
