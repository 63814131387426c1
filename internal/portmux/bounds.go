// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"errors"
	"fmt"
	"time"
)

// Bounds on frames and streams that the protocol allows but that have no use. Each frame costs time, and each stream
// that is never ended costs memory. A peer that exceeds these bounds breaks the protocol.
const (
	idleBurst    = 4096 // useless frames at once
	idleRate     = 1000 // and in a second
	minGrant     = 4096 // bytes: a smaller window is of no use, as peers grant halves of theirs
	maxLingering = 2048 // streams that we have closed and the peer has not ended
)

// useless is called for each frame that changes nothing.
func (l *link) useless() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !l.idleAt.IsZero() {
		l.idle = max(0, l.idle-now.Sub(l.idleAt).Seconds()*idleRate)
	}
	l.idleAt = now
	if l.idle++; l.idle > idleBurst {
		return fmt.Errorf("more than %d frames in a second that change nothing: %w", idleRate, ErrProtocol)
	}
	return nil
}

// linger counts a stream that we have closed and the peer has not, or one that has ended after that.
func (l *link) linger(by int) {
	l.mu.Lock()
	l.lingering += by
	tooMany := l.strict && l.lingering > maxLingering
	l.mu.Unlock()
	if tooMany {
		_ = l.fail(fmt.Errorf("the peer does not end %d streams that were closed: %w", maxLingering, ErrProtocol))
	}
}

// stray judges bytes on a stream that is not there. The host opens all streams and forgets one when the guest has
// ended it, so that no more bytes of it can come. The guest may have refused a stream before the host knew.
func (l *link) stray(h header) error {
	if l.strict {
		return fmt.Errorf("stream %d: %d bytes, although it was never opened or has ended: %w", h.stream,
			h.length, ErrProtocol)
	}
	return nil
}

// lost is ErrLost, with what the peer did.
func (l *link) lost() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.err, ErrProtocol) {
		return fmt.Errorf("%w: %w", ErrLost, l.err)
	}
	return ErrLost
}
