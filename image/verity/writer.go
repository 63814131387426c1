// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verity

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
)

// A chunk is the data that one hash block of the lowest level covers.
const chunkSize = perBlock * BlockSize

// maxWorkers bounds the goroutines that hash, and so the memory: a chunk for each and two more.
const maxWorkers = 4

// Writer writes data of a size that is known beforehand to a file and its hash tree behind it.
// It is used by one goroutine. Finish or Close must be called.
type Writer struct {
	file   io.WriterAt
	params Params
	levels []level
	upper  []byte // digests of the lowest level's blocks; each worker writes its own part

	free    chan []byte // chunks to be filled
	work    chan chunk
	workers sync.WaitGroup
	errOnce sync.Once
	err     error         // guarded by errOnce and failed
	failed  chan struct{} // closed when err is set

	current []byte // being filled
	index   uint64 // of current
	left    uint64 // bytes still to come
	closed  bool
}

type chunk struct {
	index uint64
	data  []byte
}

// NewWriter starts writing dataSize bytes, a multiple of BlockSize, at the start of file.
func NewWriter(file io.WriterAt, dataSize int64, salt []byte) (*Writer, error) {
	if dataSize%BlockSize != 0 || dataSize < 0 {
		return nil, fmt.Errorf("data of %d bytes is not a whole number of blocks", dataSize)
	}
	p := Params{Salt: salt, DataBlocks: uint64(dataSize) / BlockSize, HashOffset: uint64(dataSize)}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	n := min(runtime.GOMAXPROCS(0), maxWorkers)
	w := &Writer{
		file:   file,
		params: p,
		levels: levels(p.DataBlocks),
		upper:  make([]byte, (p.DataBlocks+perBlock-1)/perBlock*HashSize),
		free:   make(chan []byte, n+2),
		work:   make(chan chunk),
		failed: make(chan struct{}),
		left:   uint64(dataSize),
	}
	for range n + 2 {
		w.free <- nil // allocated when first used: small layers need less
	}
	for range n {
		w.workers.Go(w.run)
	}
	return w, nil
}

// Write adds data.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		room, err := w.room()
		if err != nil {
			return written, err
		}
		n := copy(room, p)
		if err := w.fill(n); err != nil {
			return written, err
		}
		p, written = p[n:], written+n
	}
	return written, nil
}

// ReadFrom adds all data of r, without copying it in between.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	for {
		room, err := w.room()
		if errors.Is(err, errTooMuch) { // r may well be at its end
			room = make([]byte, 1)
		} else if err != nil {
			return total, err
		}
		n, rerr := r.Read(room)
		if n > 0 && err != nil {
			return total, err
		}
		total += int64(n)
		if err := w.fill(n); err != nil {
			return total, err
		}
		if errors.Is(rerr, io.EOF) {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

var errTooMuch = errors.New("more data than announced")

// room returns the unfilled part of the current chunk.
func (w *Writer) room() ([]byte, error) {
	if w.left == 0 {
		return nil, errTooMuch
	}
	if w.current == nil {
		select {
		case w.current = <-w.free:
		case <-w.failed:
			return nil, w.err
		}
		if w.current == nil {
			w.current = make([]byte, 0, min(chunkSize, w.params.HashOffset))
		}
	}
	return w.current[len(w.current):min(uint64(cap(w.current)), uint64(len(w.current))+w.left)], nil
}

// fill says that n more bytes of the current chunk are there.
func (w *Writer) fill(n int) error {
	w.current = w.current[:len(w.current)+n]
	w.left -= uint64(n) //nolint:gosec // a length
	if n == 0 || len(w.current) < cap(w.current) && w.left > 0 {
		return nil
	}
	c := chunk{w.index, w.current}
	w.current = nil
	w.index++
	select {
	case w.work <- c:
		return nil
	case <-w.failed:
		return w.err
	}
}

func (w *Writer) fail(err error) {
	w.errOnce.Do(func() { w.err = err; close(w.failed) })
}

// run hashes and writes chunks until there are no more.
func (w *Writer) run() {
	h := newHasher(w.params.Salt)
	var hashes [BlockSize]byte
	for c := range w.work {
		clear(hashes[:])
		for i := 0; i*BlockSize < len(c.data); i++ {
			h.sum(hashes[i*HashSize:], c.data[i*BlockSize:(i+1)*BlockSize])
		}
		if err := w.store(h, c, hashes[:]); err != nil {
			w.fail(err)
		}
		w.free <- c.data[:0]
	}
}

func (w *Writer) store(h *hasher, c chunk, hashes []byte) error {
	if _, err := w.file.WriteAt(c.data, int64(c.index)*chunkSize); err != nil { //nolint:gosec // in the file
		return err
	}
	top := w.upper[c.index*HashSize:]
	if len(w.levels) == 0 {
		copy(top[:HashSize], hashes)
		return nil
	}
	h.sum(top, hashes)
	_, err := w.file.WriteAt(hashes, int64(w.params.HashOffset+w.levels[0].offset+c.index*BlockSize)) //nolint:gosec // in the file
	return err
}

// Finish writes the rest of the tree and returns its description.
func (w *Writer) Finish() (Params, error) {
	w.Close()
	if w.err != nil {
		return Params{}, w.err
	}
	if w.left > 0 {
		return Params{}, fmt.Errorf("data is %d bytes shorter than announced", w.left)
	}
	h := newHasher(w.params.Salt)
	digests := w.upper
	var block [BlockSize]byte
	for i := 1; i < len(w.levels); i++ {
		next := make([]byte, 0, w.levels[i].blocks*HashSize)
		for b := range w.levels[i].blocks {
			clear(block[:])
			copy(block[:], digests[b*BlockSize:])
			off := w.params.HashOffset + w.levels[i].offset + b*BlockSize
			if _, err := w.file.WriteAt(block[:], int64(off)); err != nil { //nolint:gosec // in the file
				return Params{}, err
			}
			next = h.append(next, block[:])
		}
		digests = next
	}
	copy(w.params.RootHash[:], digests)
	return w.params, nil
}

// Close stops the workers and waits for them. It may be called again.
func (w *Writer) Close() {
	if w.closed {
		return
	}
	w.closed = true
	close(w.work)
	w.workers.Wait()
}

// hasher computes salted digests without allocating.
type hasher struct {
	h    hash.Hash
	salt []byte
	buf  [HashSize]byte
}

func newHasher(salt []byte) *hasher { return &hasher{h: sha256.New(), salt: salt} }

func (h *hasher) append(dst, block []byte) []byte {
	h.h.Reset()
	h.h.Write(h.salt)
	h.h.Write(block)
	return h.h.Sum(dst)
}

// sum stores the digest of block at the start of dst.
func (h *hasher) sum(dst, block []byte) { copy(dst, h.append(h.buf[:0], block)) }
