// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package session keeps the open handshakes of a key broker. Each has a nonce that serves for one message with
// evidence; the same message again gets the same token. Their number is bounded, altogether and for each address.
package session

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
)

// Defaults of Config.
const (
	DefaultLife = 5 * time.Minute
	DefaultMax  = 20000
	// perAddress is which part of all sessions one address may have.
	perAddress = 4
)

// Errors of sessions.
var (
	ErrFull  = errors.New("too many sessions are open")
	ErrMany  = errors.New("this address has too many open sessions")
	ErrNone  = errors.New("session not found or expired; begin anew with /auth")
	ErrOther = errors.New("this session's nonce was used for other evidence")
	ErrSpent = errors.New("this session's evidence was refused; begin anew with /auth")
	ErrBusy  = errors.New("the evidence of this session is being verified")
)

// state is where a session stands.
type state int

const (
	fresh    state = iota // no evidence yet
	checking              // evidence is being verified
	done                  // the evidence was accepted: there is a token
	spent                 // the evidence was refused
)

// Session is one guest's handshake.
type Session struct {
	ID, Nonce, TEE, Addr string
	Expires              time.Time

	// guarded by Sessions.mu
	state state
	body  [32]byte // digest of the evidence's message
	token string
}

// Sessions are the open ones. All live equally long, so the order of their making is that of their end.
type Sessions struct {
	life time.Duration
	max  int
	now  func() time.Time

	mu    sync.Mutex
	byID  map[string]*Session
	addrs map[string]int
	queue []*Session
}

// New makes an empty set. Zero means the default ones.
func New(life time.Duration, limit int, now func() time.Time) *Sessions {
	s := &Sessions{life: life, max: limit, now: now, byID: map[string]*Session{}, addrs: map[string]int{}}
	if s.life == 0 {
		s.life = DefaultLife
	}
	if s.max == 0 {
		s.max = DefaultMax
	}
	return s
}

// Open makes a session.
func (s *Sessions) Open(tee, addr string) (*Session, error) {
	var raw [16 + kbs.NonceSize]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, err
	}
	n := &Session{
		ID: hex.EncodeToString(raw[:16]), Nonce: base64.StdEncoding.EncodeToString(raw[16:]), TEE: tee, Addr: addr,
		Expires: s.now().Add(s.life),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked()
	switch {
	case len(s.byID) >= s.max:
		return nil, ErrFull
	case s.addrs[addr] >= max(1, s.max/perAddress):
		return nil, ErrMany
	}
	s.byID[n.ID] = n
	s.addrs[addr]++
	s.queue = append(s.queue, n)
	return n, nil
}

// sweepLocked forgets sessions that have expired.
func (s *Sessions) sweepLocked() {
	now := s.now()
	for len(s.queue) > 0 && !now.Before(s.queue[0].Expires) {
		old := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		delete(s.byID, old.ID)
		if s.addrs[old.Addr]--; s.addrs[old.Addr] == 0 {
			delete(s.addrs, old.Addr)
		}
	}
}

// Size counts the open sessions.
func (s *Sessions) Size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked()
	return len(s.byID)
}

// Token returns the token of a session, if it has one.
func (s *Sessions) Token(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.byID[id]; n != nil && s.now().Before(n.Expires) {
		return n.token
	}
	return ""
}

// Claim gives a session's nonce to a message. The same message gets the token that it has got before.
func (s *Sessions) Claim(id string, body [32]byte) (n *Session, token string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = s.byID[id]
	switch {
	case n == nil || !s.now().Before(n.Expires):
		return nil, "", ErrNone
	case n.body != [32]byte{} && n.body != body: // also after evidence that could not be judged
		return nil, "", ErrOther
	case n.state == checking:
		return nil, "", ErrBusy
	case n.state == spent:
		return nil, "", ErrSpent
	case n.state == done:
		return n, n.token, nil
	}
	n.state, n.body = checking, body
	return n, "", nil
}

// Settle ends what claim began: with a token, or refused. Evidence that could not be judged may come again, unchanged.
func (s *Sessions) Settle(n *Session, token string, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case token != "":
		n.state, n.token = done, token
	case again:
		n.state = fresh
	default:
		n.state = spent
	}
}
