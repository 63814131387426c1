// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package resolver answers DNS questions of the guest's processes at the address where engines have their resolver for
// the containers of a network, 127.0.0.11. It does not know names: the host asks the engine (package lookup). The
// host opens a connection to the port that this package serves, with the greeting "resolver 1", and the guest listens
// on UDP and TCP as long as the connection lasts. There is one connection at a time.
//
// Neither names nor answers are logged. An answer is the host's word, so policies and, in a TEE, kernel parameters say
// whether a guest asks at all.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/lookup"
)

var greeting = gate.Greeting{Word: contract.ResolverWord, Max: 1}

const (
	patience   = 10 * time.Second // for an answer, and for a TCP client
	maxClients = 16               // TCP connections at once; others are closed
)

// Server serves the host until it is closed.
type Server struct {
	*gate.Port
	at    netip.AddrPort
	admit func() error
	one   chan struct{} // holds a token while a connection is served
}

// New makes a Server. admit decides about each connection of the host.
func New(admit func() error) *Server {
	return newAt(netip.MustParseAddrPort(contract.ResolverAddress), admit)
}

func newAt(at netip.AddrPort, admit func() error) *Server {
	s := &Server{at: at, admit: admit, one: make(chan struct{}, 1)}
	s.Port = gate.NewPort(s.serve)
	return s
}

// serve answers questions until the host closes c.
func (s *Server) serve(_ context.Context, c net.Conn) {
	var p *proxy
	err := greeting.Admit(c, func(uint32) (err error) {
		if err := s.admit(); err != nil {
			return err
		}
		select {
		case s.one <- struct{}{}:
		default:
			return fmt.Errorf("the guest's resolver has a host already: %w", errdefs.ErrAlreadyExists)
		}
		if p, err = listen(s.at, c); err != nil {
			<-s.one
		}
		return err
	})
	if p == nil {
		return
	}
	defer func() { <-s.one }()
	defer p.close()
	if err == nil {
		p.run()
	}
}

// proxy is a connection that is served.
type proxy struct {
	host    net.Conn
	udp     *net.UDPConn
	tcp     *net.TCPListener
	clients chan struct{} // a token for each TCP connection

	send sync.Mutex // one frame after the other

	mu     sync.Mutex
	number uint16
	flying map[uint16]*question // guarded by mu; by number
}

// question waits for the host's answer.
type question struct {
	body   []byte
	since  time.Time
	answer func([]byte) // called once, or never when the host does not answer
}

func listen(at netip.AddrPort, host net.Conn) (*proxy, error) {
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	// Where the port is not given, as in tests, both have the same.
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(udp.LocalAddr().(*net.UDPAddr).AddrPort()))
	if err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return &proxy{
		host: host, udp: udp, tcp: tcp, clients: make(chan struct{}, maxClients), flying: map[uint16]*question{},
	}, nil
}

// close ends everything that run waits for; it may be called twice.
func (p *proxy) close() {
	_, _, _ = p.udp.Close(), p.tcp.Close(), p.host.Close()
}

// run answers until the host closes the connection, or breaks its rules.
func (p *proxy) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(p.datagrams)
	wg.Go(func() { p.streams(ctx) })
	for {
		m, err := lookup.Read(p.host, lookup.MaxAnswer)
		if err != nil {
			break
		}
		p.answered(m)
	}
	cancel()
	p.close()
	wg.Wait()
}

// ask sends a question to the host. It is false when too many have no answer.
func (p *proxy) ask(tcp bool, q question) bool {
	number, ok := p.remember(&q)
	if !ok {
		return false
	}
	p.send.Lock()
	defer p.send.Unlock()
	_ = p.host.SetWriteDeadline(time.Now().Add(patience)) // fails only when it is closed, and so does the frame
	if err := lookup.Write(p.host, lookup.Message{Number: number, TCP: tcp, Body: q.body}); err != nil {
		_ = p.host.Close() // run reads no more
		return false
	}
	return true
}

// remember gives a question a number. Those that have waited too long are forgotten first.
func (p *proxy) remember(q *question) (uint16, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if len(p.flying) >= lookup.MaxFlying {
		for n, old := range p.flying {
			if now.Sub(old.since) > patience {
				delete(p.flying, n)
			}
		}
	}
	if len(p.flying) >= lookup.MaxFlying {
		return 0, false
	}
	for p.flying[p.number] != nil {
		p.number++
	}
	n := p.number
	p.number++
	q.since = now
	p.flying[n] = q
	return n, true
}

// answered passes an answer on. A message that does not answer its question is a failure.
func (p *proxy) answered(m lookup.Message) {
	p.mu.Lock()
	q := p.flying[m.Number]
	delete(p.flying, m.Number)
	p.mu.Unlock()
	switch {
	case q == nil: // forgotten, or never asked
	case lookup.Answers(m.Body, q.body):
		q.answer(m.Body)
	default:
		q.answer(lookup.Failure(q.body))
	}
}

// datagrams takes questions by UDP. One that is dropped is asked again by its client.
func (p *proxy) datagrams() {
	buf := make([]byte, lookup.MaxQuery+1)
	for {
		n, from, err := p.udp.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil && lookup.IsQuery(buf[:n]):
			p.ask(false, question{body: append([]byte(nil), buf[:n]...), answer: func(b []byte) {
				_, _ = p.udp.WriteToUDPAddrPort(b, from) // a client that has gone away needs no answer
			}})
		}
	}
}
