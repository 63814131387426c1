// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"sync"
	"time"
)

// clientTimeout is how long a shim waits for its first client. containerd connects as soon as `start` has
// told it the address.
const clientTimeout = 20 * time.Second

// clients tells when nobody is connected: each time that the last client went, and once if none came. A
// containerd that is killed between `start` and its first call never asks again for the shim it started.
type clients struct {
	deserted func()
	never    *time.Timer

	mu   sync.Mutex
	open int // guarded by mu
}

func newClients(patience time.Duration, deserted func()) *clients {
	return &clients{deserted: deserted, never: time.AfterFunc(patience, deserted)}
}

func (c *clients) come() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.never.Stop()
	c.open++
}

func (c *clients) leave() {
	c.mu.Lock()
	c.open--
	none := c.open == 0
	c.mu.Unlock()
	if none {
		c.deserted()
	}
}

// stop ends the wait for the first client.
func (c *clients) stop() { c.never.Stop() }
