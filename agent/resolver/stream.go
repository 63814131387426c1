// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/coco-shim/coco/internal/lookup"
)

// streams takes questions by TCP until ctx ends.
func (p *proxy) streams(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := p.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client has gone away
		}
		select {
		case p.clients <- struct{}{}:
			wg.Go(func() {
				defer func() { <-p.clients }()
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				for p.one(ctx, c) {
				}
			})
		default:
			_ = c.Close() // too many
		}
	}
}

// one answers one question of a TCP connection (RFC 1035, 4.2.2), and says whether another may follow.
func (p *proxy) one(ctx context.Context, c net.Conn) bool {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return false
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return false
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > lookup.MaxQuery {
		return false
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c, body); err != nil || !lookup.IsQuery(body) {
		return false
	}
	answers := make(chan []byte, 1)
	if !p.ask(true, question{body: body, answer: func(b []byte) { answers <- b }}) {
		return false
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case b := <-answers:
		out := binary.BigEndian.AppendUint16(nil, uint16(len(b))) //nolint:gosec // a frame has no longer one
		_ = c.SetDeadline(time.Now().Add(patience))               // fails only when it is closed, and so does the answer
		_, err := c.Write(append(out, b...))
		return err == nil
	case <-late.C:
		return false
	case <-ctx.Done():
		return false
	}
}
