// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

// inbox is the receiving direction of a stream. The caller holds the owner's lock.
//
// The window starts as the protocol's and becomes limit with the second grant. A relay's buffer and a FIFO are full
// before that, so a stream that was never read holds no more than the protocol demands. A larger window saves the peer
// wake-ups, and costs memory when the reader leaves: limit is smaller in the host, where each pod has a shim.
type inbox struct {
	queue

	limit   uint32 // the largest window
	window  uint32 // bytes that the peer may have sent and nobody read
	granted uint32 // bytes of it that the peer may still send
	read    uint32 // bytes of it that were read and not granted again
	used    bool   // there was a grant
}

func newInbox(limit uint32) inbox {
	return inbox{limit: limit, window: initialWindow, granted: initialWindow}
}

// accept counts n bytes that the peer has sent. It returns false when these are more than it may send.
func (b *inbox) accept(n uint32) bool {
	if n > b.granted {
		return false
	}
	b.granted -= n
	return true
}

// take removes the first n bytes of head.
func (b *inbox) take(n int) {
	b.queue.take(n)
	b.read += uint32(n) //nolint:gosec // at most a window
}

// grant returns how many more bytes the peer may send: none before half of its window was read.
func (b *inbox) grant() uint32 {
	if b.read < b.window/2 {
		return 0
	}
	more := b.read
	if b.used {
		more += b.limit - b.window
		b.window = b.limit
	}
	b.granted += more
	b.read, b.used = 0, true
	return more
}
