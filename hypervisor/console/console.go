// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package console keeps the last lines that a guest printed, for errors that show them.
//
// The guest may print any bytes: lines are bounded in number and length and reduced to printable
// ASCII. The driver passes the bytes in.
package console

import (
	"io"
	"strings"
	"sync"

	"github.com/coco-shim/coco/hypervisor"
)

const (
	keepLines = 4 * hypervisor.ConsoleLines
	lineBytes = 240
)

// Tail is the end of a guest's console. The zero value is empty and ready. Its methods may be called
// from several goroutines.
type Tail struct {
	mu    sync.Mutex
	lines []string // guarded by mu; at most keepLines
	cur   []byte   // guarded by mu; the unfinished line
	panic string   // guarded by mu; the kernel's words when it gave up
}

// Follow reads until the console ends.
func (c *Tail) Follow(r io.Reader) {
	buf := make([]byte, 2048)
	for {
		n, err := r.Read(buf)
		c.write(buf[:n])
		if err != nil {
			return
		}
	}
}

func (c *Tail) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range p {
		switch {
		case ch == '\n':
			c.endLineLocked()
		case ch == '\t', ch >= ' ' && ch < 0x7f:
			if len(c.cur) < lineBytes {
				c.cur = append(c.cur, ch)
			}
		}
	}
}

const panicWords = "Kernel panic - not syncing: "

func (c *Tail) endLineLocked() {
	line := string(c.cur)
	c.cur = c.cur[:0]
	if strings.TrimSpace(line) == "" {
		return
	}
	if _, words, ok := strings.Cut(line, panicWords); ok && c.panic == "" {
		c.panic = words
		c.lines = append(c.lines[:0], c.lines[max(0, len(c.lines)-beforePanic):]...)
	}
	if len(c.lines) == keepLines {
		if c.panic != "" {
			return // what comes long after the reason tells nothing
		}
		c.lines = append(c.lines[:0], c.lines[1:]...)
	}
	c.lines = append(c.lines, line)
}

// beforePanic is how many lines in front of a kernel's last words are worth more than the
// registers and call trace behind them.
const beforePanic = hypervisor.ConsoleLines / 2

// Lines returns the last lines, the unfinished one included; after a panic those around its reason.
func (c *Tail) Lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append([]string(nil), c.lines...)
	if len(c.cur) > 0 {
		all = append(all, string(c.cur))
	}
	start := max(0, len(all)-hypervisor.ConsoleLines)
	for i, l := range all {
		if strings.Contains(l, panicWords) {
			start = min(start, max(0, i-beforePanic))
			break
		}
	}
	return all[start:min(len(all), start+hypervisor.ConsoleLines)]
}

// Panicked returns the kernel's last words, or "".
func (c *Tail) Panicked() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panic
}

// Silent tells that the guest printed nothing at all.
func (c *Tail) Silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lines) == 0 && len(c.cur) == 0
}

// Mentions tells whether one of the kept lines contains one of the words.
func (c *Tail) Mentions(words ...string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		for _, w := range words {
			if strings.Contains(l, w) {
				return true
			}
		}
	}
	return false
}
