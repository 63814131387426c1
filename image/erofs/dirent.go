// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

// A directory is a sequence of blocks. Each has an array of entries (inode, offset of the
// name, type), sorted by name over the whole directory with "." and ".." in their places, and
// then the names. The last block is as long as it needs to be.

// direntBlocks calls emit with each block of a directory and returns the directory's size. With a
// nil emit it only measures, and does not need the inodes' places.
func direntBlocks(dir *node, emit func([]byte)) uint64 {
	var size uint64
	var batch []entry
	used := 0
	flush := func(last bool) {
		if len(batch) == 0 {
			return
		}
		length := BlockSize
		if last {
			length = used
		}
		size += uint64(length)
		if emit != nil {
			emit(direntBlock(batch, length))
		}
		batch, used = batch[:0], 0
	}
	eachEntry(dir, func(e entry) {
		need := direntSize + len(e.name)
		if used+need > BlockSize {
			flush(false)
		}
		batch = append(batch, e)
		used += need
	})
	flush(true)
	return size
}

// eachEntry visits the sorted entries of a directory, with "." and "..".
func eachEntry(dir *node, visit func(entry)) {
	parent := dir.parent
	if parent == nil {
		parent = dir
	}
	dots := []entry{{".", dir}, {"..", parent}}
	for _, e := range dir.kids {
		for len(dots) > 0 && dots[0].name < e.name {
			visit(dots[0])
			dots = dots[1:]
		}
		visit(e)
	}
	for _, d := range dots {
		visit(d)
	}
}

func direntBlock(batch []entry, length int) []byte {
	b := make([]byte, 0, BlockSize)
	nameOff := len(batch) * direntSize
	for _, e := range batch {
		b = le.AppendUint64(b, e.node.nid())
		b = le.AppendUint16(b, uint16(nameOff)) //nolint:gosec // in a block
		b = append(b, fileType(e.node.mode), 0)
		nameOff += len(e.name)
	}
	for _, e := range batch {
		b = append(b, e.name...)
	}
	return b[:length] // the rest is zero: b was made so
}
