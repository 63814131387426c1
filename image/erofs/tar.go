// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Names that mean something else in a layer's tar (OCI image specification, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // AUFS leftovers, not part of a layer
	paxXattr       = "SCHILY.xattr."
)

// maxSparse bounds what the sparse files of a layer may grow to when they are filled: a few bytes of
// tar can claim any size.
var maxSparse int64 = 4 << 30

const maxFollow = 40 // symbolic links on the way to one name, as in Linux

// FromTar reads the tree of a layer's (uncompressed) tar. File contents of a stream are put into
// spool, an empty file; of a seekable r that is also an io.ReaderAt, such as a file, they are left
// where they are. spool may then be nil. The tree reads from r and spool until it is closed, but
// closes neither.
//
// Names are resolved as an unpacker in a chroot would: beneath the root, through the layer's own
// symbolic links. Whiteouts become what an overlay expects. A later entry replaces an earlier one.
//
// lower are the layers below, the topmost first. A directory that is not described but must be there
// takes mode and owner from them, as it does when containerd unpacks the layer.
func FromTar(ctx context.Context, r io.Reader, spool *os.File, lower ...*Tree) (*Tree, error) {
	return FromSmallTar(ctx, maxNodes, r, spool, lower...)
}

// FromSmallTar is FromTar for a tar of at most so many entries and directories: each costs memory, about 400 bytes.
func FromSmallTar(ctx context.Context, most int, r io.Reader, spool *os.File, lower ...*Tree) (*Tree, error) {
	root := &node{mode: sIFDIR | 0o755, implied: true, index: map[string]*node{}}
	t := &tarReader{root: root, content: &tarContent{}, spool: spool, most: min(most, maxNodes)}
	t.content.spool = spool
	if in, ok := r.(readSeekerAt); ok {
		t.in = in
		t.content.in = in
	}
	t.tr = tar.NewReader(ctxReader{ctx, r})
	if t.in != nil {
		t.tr = tar.NewReader(ctxSeeker{ctxReader{ctx, r}, t.in})
	}
	for {
		h, err := t.tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("layer tar: %w", err)
		}
		if err := t.add(h); err != nil {
			return nil, fmt.Errorf("layer tar: entry %.200q: %w", h.Name, err)
		}
	}
	if root.implied && len(lower) > 0 {
		root.uid, root.gid = lower[0].root.uid, lower[0].root.gid
	}
	if err := freeze(root, lower); err != nil {
		return nil, fmt.Errorf("layer tar: %w", err)
	}
	return newTree(asDocker(root), t.content)
}

type readSeekerAt interface {
	io.ReadSeeker
	io.ReaderAt
}

// ctxSeeker lets the tar reader skip contents.
type ctxSeeker struct {
	ctxReader
	io.Seeker
}

// tarReader builds a tree from entries.
type tarReader struct {
	tr      *tar.Reader
	root    *node
	in      readSeekerAt // nil for a stream
	spool   *os.File
	spooled int64
	sparse  int64
	content *tarContent
	count   int
	most    int // of count
}

// another counts an entry, or a directory that none describes.
func (t *tarReader) another() error {
	if t.count++; t.count > t.most {
		return fmt.Errorf("more than %d files", t.most)
	}
	return nil
}

func (t *tarReader) add(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return ignoreRoot(h)
	}
	if err := t.another(); err != nil {
		return err
	}
	dir, err := t.dir(t.root, parts[:len(parts)-1], 0)
	if err != nil {
		return err
	}
	base := parts[len(parts)-1]
	switch {
	case base == whiteoutOpaque:
		return dir.setXattr(xattrOpaque, "y")
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case strings.HasPrefix(base, whiteoutPrefix):
		return t.whiteout(dir, base[len(whiteoutPrefix):])
	case len(base) > maxName:
		return errNameTooLong
	case h.Typeflag == tar.TypeLink:
		return t.link(dir, base, h.Linkname)
	}
	return t.file(dir, base, h)
}

var errNameTooLong = fmt.Errorf("part of the name is longer than %d bytes", maxName)

// splitPath cuts a name into its parts, dropping "." and keeping "..".
func splitPath(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("name of %d bytes is longer than %d", len(name), maxPath)
	}
	if strings.Contains(name, "\x00") {
		return nil, errors.New("name holds a zero byte")
	}
	parts := slices.DeleteFunc(strings.Split(name, "/"), func(p string) bool { return p == "" || p == "." })
	for _, p := range parts {
		if len(strings.TrimPrefix(p, whiteoutPrefix)) > maxName {
			return nil, errNameTooLong
		}
	}
	if len(parts) > 0 && parts[len(parts)-1] == ".." {
		return nil, errors.New("name ends in its parent directory")
	}
	return parts, nil
}

// ignoreRoot passes over an entry for the root, as containerd does: the directory into which it unpacks a layer has
// mode 0755 and the owner of the one below. Base images of some distributions describe the root with another mode.
func ignoreRoot(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("the root is not a directory")
	}
	return nil
}

// dir finds the directory at parts below from, following the layer's symbolic links without leaving
// the root, and makes what is missing.
func (t *tarReader) dir(from *node, parts []string, followed int) (*node, error) {
	for i, part := range parts {
		if part == ".." {
			if from.parent != nil {
				from = from.parent
			}
			continue
		}
		n := from.index[part]
		switch {
		case n != nil && n.isDir():
			from = n
		case n != nil && n.mode&sIFMT == sIFLNK:
			if followed++; followed > maxFollow {
				return nil, errors.New("too many symbolic links")
			}
			target := slices.DeleteFunc(strings.Split(n.target, "/"), func(p string) bool { return p == "" || p == "." })
			start := from
			if strings.HasPrefix(n.target, "/") {
				start = t.root
			}
			return t.dir(start, append(target, parts[i+1:]...), followed)
		case n != nil && !isWhiteout(n):
			return nil, fmt.Errorf("%q is not a directory", n.path())
		default:
			d, err := t.newDir(from, part, n != nil)
			if err != nil {
				return nil, err
			}
			d.mode, d.implied = d.mode|0o755, true
			from = d
		}
	}
	return from, nil
}

// newDir makes a directory; one that takes the place of a whiteout hides what is below it.
func (t *tarReader) newDir(parent *node, name string, whitened bool) (*node, error) {
	if len(name) > maxName {
		return nil, errNameTooLong
	}
	if err := t.another(); err != nil {
		return nil, err
	}
	depth := 0
	for p := parent; p != nil; p = p.parent {
		if depth++; depth > maxPath/2 {
			return nil, errors.New("directories are nested too deeply")
		}
	}
	d := &node{parent: parent, name: name, mode: sIFDIR, index: map[string]*node{}}
	parent.index[name] = d
	if whitened {
		return d, d.setXattr(xattrOpaque, "y")
	}
	return d, nil
}

func isWhiteout(n *node) bool { return n.mode&sIFMT == sIFCHR && n.rdev == 0 }

// whiteout hides a name of the layers below. It never hides what this layer itself brings.
func (t *tarReader) whiteout(dir *node, name string) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("whiteout of nothing")
	}
	switch n := dir.index[name]; {
	case n == nil:
		n = &node{parent: dir, name: name}
		makeWhiteout(n)
		dir.index[name] = n
	case n.isDir():
		return n.setXattr(xattrOpaque, "y")
	}
	return nil
}

// link gives a file of this layer another name.
func (t *tarReader) link(dir *node, name, target string) error {
	parts, err := splitPath(target)
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("hard link to %.200q, which cannot be linked", target)
	}
	td, err := t.lookupDir(parts[:len(parts)-1])
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	n := td.index[parts[len(parts)-1]]
	if n == nil || isWhiteout(n) {
		return fmt.Errorf("hard link to %.200q, which is not in this layer", target)
	}
	if n.isDir() {
		return fmt.Errorf("hard link to %.200q, which is a directory", target)
	}
	if old := dir.index[name]; old == n {
		return nil
	}
	dir.index[name] = n
	return nil
}

// lookupDir is dir without making anything that is not there.
func (t *tarReader) lookupDir(parts []string) (*node, error) {
	before := t.count
	d, err := t.dir(t.root, parts, 0)
	if err == nil && t.count != before {
		return nil, errors.New("no such directory in this layer")
	}
	return d, err
}

// file adds anything that is neither a whiteout nor a hard link.
func (t *tarReader) file(dir *node, name string, h *tar.Header) error {
	kind, err := tarKind(h)
	if err != nil {
		return err
	}
	old := dir.index[name]
	whitened := old != nil && isWhiteout(old)
	if kind == sIFDIR {
		if old == nil || !old.isDir() {
			if old, err = t.newDir(dir, name, whitened); err != nil {
				return err
			}
		}
		return t.describe(old, kind, h)
	}
	n := &node{parent: dir, name: name}
	if kind == sIFCHR && h.Devmajor == 0 && h.Devminor == 0 {
		makeWhiteout(n)
		dir.index[name] = n
		return nil
	}
	dir.index[name] = n
	if err := t.describe(n, kind, h); err != nil {
		return err
	}
	switch kind {
	case sIFREG:
		return t.store(n, h)
	case sIFLNK:
		if len(h.Linkname) == 0 || len(h.Linkname) > maxSymlink {
			return fmt.Errorf("symbolic link of %d bytes", len(h.Linkname))
		}
		n.target, n.size = h.Linkname, uint64(len(h.Linkname))
	case sIFCHR, sIFBLK:
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		n.rdev = encodeDev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	return nil
}

func tarKind(h *tar.Header) (uint32, error) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, '\x00':
		return sIFREG, nil
	case tar.TypeDir:
		return sIFDIR, nil
	case tar.TypeSymlink:
		return sIFLNK, nil
	case tar.TypeChar:
		return sIFCHR, nil
	case tar.TypeBlock:
		return sIFBLK, nil
	case tar.TypeFifo:
		return sIFIFO, nil
	}
	return 0, fmt.Errorf("unknown entry type %q", h.Typeflag)
}

// describe takes over the attributes of an entry.
func (t *tarReader) describe(n *node, kind uint32, h *tar.Header) error {
	n.mode = kind | uint32(h.Mode)&0o7777 //nolint:gosec // twelve bits
	if kind == sIFLNK {
		n.mode = kind | 0o777 // what Linux makes of it
	}
	n.implied = false
	var err error
	if n.uid, err = tarID(h.Uid); err != nil {
		return err
	}
	if n.gid, err = tarID(h.Gid); err != nil {
		return err
	}
	n.mtime, n.nsec = 0, 0
	if !h.ModTime.IsZero() {
		n.mtime, n.nsec = kept(n.mode, h.ModTime.Unix(), int64(h.ModTime.Nanosecond()))
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			if err := n.addXattr(name, v, false); err != nil {
				return err
			}
		}
	}
	return nil
}

func tarID(id int) (uint32, error) {
	if id < 0 || int64(id) > 1<<32-2 {
		return 0, fmt.Errorf("owner %d is out of range", id)
	}
	return uint32(id), nil
}

// store remembers where a file's content is, or keeps it in the spool.
func (t *tarReader) store(n *node, h *tar.Header) error {
	n.size = uint64(h.Size) //nolint:gosec // archive/tar refuses negative ones
	if t.in != nil && !isSparse(h) {
		off, err := t.in.Seek(0, io.SeekCurrent)
		n.data = off
		return err
	}
	if h.Size == 0 {
		return nil
	}
	if t.spool == nil {
		return errors.New("sparse file needs a spool")
	}
	if isSparse(h) {
		if t.sparse += h.Size; h.Size > maxSparse || t.sparse > maxSparse {
			return fmt.Errorf("sparse files of more than %d MiB", maxSparse>>20)
		}
	}
	n.spool, n.data = true, t.spooled
	got, err := io.Copy(t.spool, t.tr)
	t.spooled += got
	if err == nil && got != h.Size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// freeze turns the maps of a tree into the lists that a Tree has.
func freeze(dir *node, lower []*Tree) error {
	dir.kids = make([]entry, 0, len(dir.index))
	for name, n := range dir.index {
		dir.kids = append(dir.kids, entry{name, n})
		if !n.isDir() {
			continue
		}
		if n.implied {
			if err := n.inherit(lower); err != nil {
				return pathError("describe", n.path(), err)
			}
		}
		if err := freeze(n, lower); err != nil {
			return err
		}
	}
	dir.index = nil
	return nil
}

// inherit describes a directory by what the layers below have in its place.
func (n *node) inherit(lower []*Tree) error {
	for _, t := range lower {
		l := t.find(n.path())
		if l == nil {
			continue
		}
		if !l.isDir() {
			return nil
		}
		n.mode, n.uid, n.gid = l.mode, l.uid, l.gid
		for _, x := range l.xattrs {
			if strings.HasPrefix(x.name, "trusted.") {
				continue
			}
			if err := n.setXattr(x.name, x.value); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// find returns what a finished tree has at a path, without following symbolic links.
func (t *Tree) find(path string) *node {
	n := t.root
	for part := range strings.SplitSeq(path, "/") {
		i, ok := slices.BinarySearchFunc(n.kids, part, func(e entry, s string) int { return strings.Compare(e.name, s) })
		if !ok {
			return nil
		}
		n = n.kids[i].node
	}
	return n
}

// tarContent reads from the tar or its spool.
type tarContent struct {
	in    io.ReaderAt
	spool *os.File
}

func (c *tarContent) open(n *node) (io.ReadCloser, error) {
	src := c.in
	if n.spool {
		src = c.spool
	}
	if n.size == 0 {
		src = strings.NewReader("")
	}
	return io.NopCloser(io.NewSectionReader(src, n.data, int64(n.size))), nil //nolint:gosec // from an int64
}

func (c *tarContent) Close() error { return nil }
