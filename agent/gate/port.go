// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"net"
	"sync"
)

// Port serves the connections of a stream port until it is closed: each in a goroutine of its own, which closes it.
type Port struct {
	handle func(life context.Context, c net.Conn)
	life   context.Context
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// NewPort makes a Port. handle serves a connection; life is done, and c closed, when the port is closed.
func NewPort(handle func(life context.Context, c net.Conn)) *Port {
	life, end := context.WithCancel(context.Background())
	return &Port{handle: handle, life: life, end: end}
}

// Close ends all connections and waits for their goroutines.
func (p *Port) Close() {
	p.end()
	p.wg.Wait()
}

// Serve serves a listener until it or the port is closed.
func (p *Port) Serve(l net.Listener) error {
	p.wg.Add(1) // so that Close does not end its wait while a connection is accepted
	defer p.wg.Done()
	defer context.AfterFunc(p.life, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if p.life.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		p.wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(p.life, func() { _ = c.Close() })()
			p.handle(p.life, c)
		})
	}
}
