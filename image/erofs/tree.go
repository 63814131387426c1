// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package erofs writes image layers as EROFS file systems: uncompressed, and such that the content
// alone decides every byte. The same layer gives the same image whether it is read from the
// directory that a snapshotter unpacked it to (FromDir) or from the registry's tar (FromTar).
//
// Both build a Tree from names and attributes; its layout, and so the image's size, is known before
// any file's data is read. Write then produces the image front to back in one pass and reads each file
// once, so that a hash tree can be computed along the way and memory does not depend on
// the size of the data.
//
// docs/decisions/layers.md lists the properties that are normalised so that both ways agree.
package erofs

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"
)

// Limits on what a tree may hold: a hostile tar must not exhaust memory.
const (
	maxNodes   = 4 << 20
	maxPath    = 4096 // bytes, as in Linux
	maxSymlink = 4095
)

// inlineMax is the size up to which a regular file lives next to its inode instead of in
// blocks of its own.
const inlineMax = 2048

// node is an inode. It can have several names when it is not a directory.
type node struct {
	parent *node  // directory of the first name
	name   string // first name
	mode   uint32
	uid    uint32
	gid    uint32
	rdev   uint32 // encoded
	nlink  uint32
	mtime  int64
	nsec   uint32 // of mtime
	size   uint64
	data   int64  // offset of the content in the tar or its spool
	spool  bool   // content is in the spool
	target string // of a symbolic link
	xattrs []xattr
	kids   []entry          // of a directory, sorted once the tree is finished
	index  map[string]*node // of a directory while a tar is read

	implied    bool // directory that no entry of the tar has described
	layout     byte
	startBlock uint32
	offset     uint64 // of the inode in the image
}

type entry struct {
	name string
	node *node
}

func (n *node) isDir() bool { return n.mode&sIFMT == sIFDIR }
func (n *node) isReg() bool { return n.mode&sIFMT == sIFREG }

// path is the node's first name, relative to the root.
func (n *node) path() string {
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// kept is the time that a file keeps: nothing before 1970, which unpackers do not make either. A directory whose
// time has a fraction keeps none at all: a directory that the layer's tar did not mention, but that the unpacker had
// to make for what is in it, has the time of the unpacking, and this is how it can be told from one with a time of
// its own.
func kept(mode uint32, sec, ns int64) (mtime int64, nsec uint32) {
	if sec < 0 || mode&sIFMT == sIFDIR && ns != 0 {
		return 0, 0
	}
	return sec, uint32(ns) //nolint:gosec // less than a second
}

// makeWhiteout normalises n: a whiteout's owner and time come from the program that unpacked it, not from the image.
func makeWhiteout(n *node) {
	*n = node{parent: n.parent, name: n.name, mode: sIFCHR}
}

// content opens the data of regular files.
type content interface {
	open(n *node) (io.ReadCloser, error)
	io.Closer
}

// Tree is a file system that is ready to be written. Close releases what it reads from.
type Tree struct {
	root    *node
	src     content
	nodes   []*node // in the order of their inodes
	metaEnd uint64  // end of the inode area
	blocks  uint64
}

// Size is the size of the image in bytes, a multiple of BlockSize.
func (t *Tree) Size() int64 { return int64(t.blocks) * BlockSize } //nolint:gosec // layOut bounds it

// Inodes is the number of files, directories and other objects in the image.
func (t *Tree) Inodes() int { return len(t.nodes) }

// Close releases the source.
func (t *Tree) Close() error { return t.src.Close() }

// newTree sorts the directories, counts links and lays the image out.
func newTree(root *node, src content) (*Tree, error) {
	t := &Tree{root: root, src: src}
	root.mtime, root.nsec = 0, 0 // the time of the snapshot directory itself is the unpacker's
	t.place(root)
	t.placeUnder(root)
	return t, t.layOut()
}

// place gives n the next inode, unless an earlier name already has.
func (t *Tree) place(n *node) {
	n.nlink++
	if n.nlink == 1 {
		t.nodes = append(t.nodes, n)
	}
}

// placeUnder lists the inodes of a directory next to each other, then goes down.
func (t *Tree) placeUnder(dir *node) {
	// slices.SortFunc costs 9 kB of the shim for this type.
	sort.Slice(dir.kids, func(a, b int) bool { return dir.kids[a].name < dir.kids[b].name })
	for _, e := range dir.kids {
		t.place(e.node)
	}
	dir.nlink = 2
	for _, e := range dir.kids {
		if e.node.isDir() {
			dir.nlink++
			t.placeUnder(e.node)
		}
	}
}

var errTooManyFiles = fmt.Errorf("more than %d files", maxNodes)

// pathError names the file that an error is about.
func pathError(op, path string, err error) error {
	return &os.PathError{Op: op, Path: "/" + path, Err: err}
}
