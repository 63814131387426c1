// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"sync"
	"time"
)

// askTimeout is how long a shim waits to be asked for something. containerd does so as soon as `start` has told it the
// address.
const askTimeout = 20 * time.Second

// clients tells when nobody seems to want the shim: each time that the last client went, and once after askTimeout. A
// containerd that is killed between `start` and its first call never asks for anything: not at all if it had not stored the
// address, and if it had it connects after its restart, and keeps the shim of a sandbox that it takes for made.
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
