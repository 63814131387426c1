// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// ErrNotRegular says that a name is there and is no regular file.
var ErrNotRegular = errors.New("not a regular file")

// ReadFile reads a file of at most so many bytes as an overlay of the layers shows it, the topmost first. Symbolic
// links are followed beneath the root. A name that is not there gives an error that wraps fs.ErrNotExist.
func ReadFile(layers []*Tree, name string, most int64) ([]byte, error) {
	at, err := find(layers, name)
	var b []byte
	if err == nil {
		b, err = at.read(most)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// WalkFiles visits the regular files below a directory as an overlay of the layers shows it, the topmost first, in the
// order of their names. A directory that is not there has none.
func WalkFiles(layers []*Tree, dir string, visit func(name string, content io.Reader) error) error {
	at, err := find(layers, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = at.walkFiles("", visit)
	}
	if err != nil {
		return &fs.PathError{Op: "walk", Path: dir, Err: err}
	}
	return nil
}

func (m merged) walkFiles(prefix string, visit func(string, io.Reader) error) error {
	names := map[string]bool{}
	for _, p := range m {
		for _, e := range p.node.kids {
			names[e.name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c := m.child(name)
		if len(c) == 0 {
			continue
		}
		var err error
		switch n := c[0].node; {
		case n.isDir():
			err = c.walkFiles(prefix+name+"/", visit)
		case n.isReg():
			err = c[0].open(func(r io.Reader) error { return visit(prefix+name, r) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func find(layers []*Tree, name string) (merged, error) {
	root := make(merged, 0, len(layers))
	for _, t := range layers {
		root = append(root, place{t, t.root})
		if hidesLower(t.root) {
			break
		}
	}
	w := pathWalk{chain: []merged{root}}
	if err := w.walk(pathParts(name)); err != nil {
		return nil, err
	}
	return w.at(), nil
}

// place is an inode of one layer.
type place struct {
	tree *Tree
	node *node
}

// merged is what the layers have at one path, the topmost first: directories that are shown as one, or one other
// object.
type merged []place

// pathWalk goes from the root to a path.
type pathWalk struct {
	chain    []merged // from the root to where it is
	followed int
}

func (w *pathWalk) at() merged { return w.chain[len(w.chain)-1] }

func pathParts(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(p string) bool { return p == "" || p == "." })
}

func (w *pathWalk) walk(names []string) error {
	for i, name := range names {
		if name == ".." {
			w.chain = w.chain[:max(len(w.chain)-1, 1)]
			continue
		}
		next := w.at().child(name)
		if len(next) == 0 {
			return fs.ErrNotExist
		}
		n := next[0].node
		if n.mode&sIFMT != sIFLNK {
			w.chain = append(w.chain, next)
			continue
		}
		if w.followed++; w.followed > maxFollow {
			return errors.New("too many symbolic links")
		}
		if strings.HasPrefix(n.target, "/") {
			w.chain = w.chain[:1]
		}
		return w.walk(append(pathParts(n.target), names[i+1:]...))
	}
	return nil
}

// child returns what is at a name in a directory; nothing if the name is not there or the place is no directory.
func (m merged) child(name string) (out merged) {
	for _, p := range m {
		if !p.node.isDir() {
			break
		}
		i, ok := slices.BinarySearchFunc(p.node.kids, name, func(e entry, s string) int { return strings.Compare(e.name, s) })
		if !ok {
			continue
		}
		n := p.node.kids[i].node
		if isWhiteout(n) || !n.isDir() && len(out) > 0 {
			break
		}
		out = append(out, place{p.tree, n})
		if !n.isDir() || hidesLower(n) {
			break
		}
	}
	return out
}

func hidesLower(n *node) bool {
	return slices.ContainsFunc(n.xattrs, func(x xattr) bool { return x.name == xattrOpaque })
}

func (m merged) read(most int64) ([]byte, error) {
	p := m[0]
	if !p.node.isReg() {
		return nil, ErrNotRegular
	}
	if p.node.size > uint64(max(most, 0)) {
		return nil, fmt.Errorf("has %d bytes, more than %d", p.node.size, most)
	}
	var b []byte
	err := p.open(func(r io.Reader) (err error) {
		b, err = io.ReadAll(io.LimitReader(r, most))
		return err
	})
	return b, err
}

// open passes a regular file's content on.
func (p place) open(use func(io.Reader) error) error {
	r, err := p.tree.src.open(p.node)
	if err != nil {
		return err
	}
	return errors.Join(use(r), r.Close())
}
