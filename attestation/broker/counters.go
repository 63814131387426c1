// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"cmp"
	"slices"
	"sync"
)

// counters count events by their result. The zero value is empty.
type counters struct {
	mu sync.Mutex
	n  map[[2]string]float64
}

// count is one counter.
type count struct {
	name, result string
	n            float64
}

func (c *counters) add(name, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[[2]string]float64{}
	}
	c.n[[2]string{name, result}]++
}

// all returns the counters in a fixed order.
func (c *counters) all() []count {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []count
	for k, n := range c.n {
		out = append(out, count{k[0], k[1], n})
	}
	slices.SortFunc(out, func(a, b count) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.result, b.result))
	})
	return out
}
