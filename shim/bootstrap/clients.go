// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"sync"
	"time"
)

// askTimeout is how long a shim waits for its first call. containerd makes it as soon as `start` has printed the
// address.
const askTimeout = 20 * time.Second

// clients counts connections. It calls deserted each time the last client disconnects, and once if no call came within
// askTimeout. A containerd that is killed between `start` and its first call never makes that call. If it had stored
// the address, it connects after its restart and keeps the shim, since it takes the sandbox for created.
type clients struct {
	deserted func()
	unasked  *time.Timer

	mu   sync.Mutex
	open int           // guarded by mu
	gone chan struct{} // guarded by mu; closed when open falls to 0, and then replaced
}

func newClients(patience time.Duration, deserted func()) *clients {
	return &clients{deserted: deserted, unasked: time.AfterFunc(patience, deserted), gone: make(chan struct{})}
}

func (c *clients) come() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
}

func (c *clients) leave() {
	c.mu.Lock()
	c.open--
	none := c.open == 0
	if none {
		close(c.gone)
		c.gone = make(chan struct{})
	}
	c.mu.Unlock()
	if none {
		c.deserted()
	}
}

// wait waits until no client is connected.
func (c *clients) wait(ctx context.Context) {
	c.mu.Lock()
	none, gone := c.open == 0, c.gone
	c.mu.Unlock()
	if none {
		return
	}
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

// stop ends the wait for the first question.
func (c *clients) stop() { c.unasked.Stop() }
