// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import "sync"

// chunk is a piece of what a stream has received and nobody has read. With its indexes it is 64 KiB: a little more
// would take the allocator 72.
type chunk struct {
	buf  [64<<10 - 16]byte
	r, w int
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// queue holds received bytes in chunks that are filled one after the other, so that many small
// frames take no more memory than a large one. One goroutine fills it and one empties it; the
// caller holds the owner's lock.
type queue struct {
	list    []*chunk
	filling bool // room was handed out and not yet committed
}

// room returns where the next bytes go, at most n.
func (q *queue) room(n int) []byte {
	var last *chunk
	if len(q.list) > 0 {
		last = q.list[len(q.list)-1]
	}
	if last == nil || last.w == len(last.buf) {
		last, _ = chunks.Get().(*chunk)
		last.r, last.w = 0, 0
		q.list = append(q.list, last)
	}
	q.filling = true
	return last.buf[last.w:min(last.w+n, len(last.buf))]
}

// commit says how much of the room was filled.
func (q *queue) commit(n int) {
	q.filling = false
	if len(q.list) > 0 { // else it was dropped
		q.list[len(q.list)-1].w += n
	}
}

// head returns the oldest bytes, or nothing when the queue is empty.
func (q *queue) head() []byte {
	if len(q.list) == 0 {
		return nil
	}
	return q.list[0].buf[q.list[0].r:q.list[0].w]
}

// take removes the first n bytes of head.
func (q *queue) take(n int) {
	if len(q.list) == 0 {
		return // dropped meanwhile
	}
	c := q.list[0]
	if c.r += n; c.r < c.w || c.w < len(c.buf) && q.filling {
		return
	}
	q.list[0] = nil
	if q.list = q.list[1:]; len(q.list) == 0 {
		q.list = nil
	}
	chunks.Put(c)
}

// drop forgets everything. A reader or the filler may still use a chunk, so none is reused.
func (q *queue) drop() { q.list, q.filling = nil, false }
