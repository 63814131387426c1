// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package client gets secrets from a key broker, as a guest.
//
// A client makes a key, proves the guest to the broker (package kbs tells how), and keeps the token until the broker
// refuses it. Then it proves the guest anew, once. One handshake serves all callers.
//
// The network and the host are hostile. The client speaks TLS only, and trusts only the certificates that it was given;
// it follows no redirect and asks no proxy. It does not use the guest's clock for trust: the host may set it. A
// certificate chain is accepted if there is any time at which all of it is valid, and the broker alone decides whether
// a token has expired.
//
// The client repeats a request that failed for a passing reason (no connection, 429, 503, other faults of servers)
// until the caller's deadline. Other failures are returned at once: Denied, NotFound, refused evidence, a wrong
// certificate.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
)

// Attester makes the evidence of the guest.
type Attester interface {
	// TEE is the name of the evidence's type in the protocol, such as "snp".
	TEE() string
	// Evidence returns the JSON of the TEE's evidence for a digest of 48 bytes. The attester fills or cuts the digest to
	// the length of the TEE's field.
	Evidence(ctx context.Context, digest []byte) (json.RawMessage, error)
}

// Config says which broker is asked, and as whom.
type Config struct {
	// URL is where the broker is: https://host:port.
	URL string
	// CertPEM has the broker's certificate, or those of its CAs. There are no others.
	CertPEM []byte
	// Key is the kind of the guest's key; empty means P-256.
	Key kbs.Kind
	// InitData is the text of the pod's initdata. The broker compares its digest with the evidence.
	InitData string
	Attester Attester
	// Timeout bounds each call, with all its attempts. Zero means 60 seconds.
	Timeout time.Duration
}

const (
	defaultTimeout = 60 * time.Second
	maxAnswer      = 4 << 20
	maxCookie      = 512
)

// Reason says why there is no secret.
type Reason string

// Reasons. A repeat helps only with Unavailable.
const (
	Unavailable Reason = "unavailable" // no answer, or one that asks for patience, until the deadline
	Untrusted   Reason = "untrusted"   // not the certificate that was given, a redirect, or no answer of the protocol
	Refused     Reason = "refused"     // the broker does not accept the evidence
	Denied      Reason = "denied"      // the broker's policy does not release the resource
	NotFound    Reason = "not-found"   // the broker has no such resource
	NoEvidence  Reason = "no-evidence" // the guest could not make evidence
)

// Error is a failure with its reason.
type Error struct {
	Reason Reason
	// Phase is the step that failed: "auth", "attest" or "resource".
	Phase string
	Cause error
}

// Error returns one sentence.
func (e *Error) Error() string {
	return fmt.Sprintf("key broker, %s: %s: %v", e.Phase, e.Reason, e.Cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Client gets secrets. Its methods may be called by several goroutines.
type Client struct {
	cfg  Config
	base *url.URL
	http *http.Client

	// turn holds the session: its holder may attest. A channel, so that waiting can be cancelled.
	turn chan *session
}

// session is what one handshake has given.
type session struct {
	cookie string
	token  string
	key    *kbs.Key
}

// New checks the configuration. It opens no connection.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the broker's URL %q is not one such as https://kbs.example:8080", cfg.URL)
	}
	if cfg.Attester == nil {
		return nil, errors.New("a client of a key broker without an attester")
	}
	if err := cfg.Key.Check(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	transport, err := NewTransport(u.Hostname(), cfg.CertPEM)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, base: u, turn: make(chan *session, 1)}
	c.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.turn <- nil
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Token is a broker's statement on the guest, with the key that it names.
type Token struct {
	JWT string
	Key *kbs.Key
}

// Token attests anew, and returns the token.
func (c *Client) Token(ctx context.Context) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	s, err := c.session(ctx, nil, true)
	if err != nil {
		return Token{}, err
	}
	return Token{s.token, s.key}, nil
}

// Resource returns a secret by its path, such as "repository/type/tag" or kbs:///repository/type/tag. An empty secret
// is an error.
func (c *Client) Resource(ctx context.Context, path string) ([]byte, error) {
	path, err := kbs.ParsePath(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	s, err := c.session(ctx, nil, false)
	if err != nil {
		return nil, err
	}
	secret, err := c.resource(ctx, s, path)
	if tokenIsStale(err) { // expired, or the broker has new keys
		if s, err = c.session(ctx, s, false); err != nil {
			return nil, err
		}
		secret, err = c.resource(ctx, s, path)
	}
	return secret, err
}

// session returns a session other than the stale one; fresh ones are always made anew.
func (c *Client) session(ctx context.Context, stale *session, fresh bool) (*session, error) {
	var s *session
	select {
	case s = <-c.turn:
	case <-ctx.Done():
		return nil, &Error{Unavailable, "auth", context.Cause(ctx)}
	}
	defer func() { c.turn <- s }()
	if s != nil && s != stale && !fresh {
		return s, nil
	}
	made, err := c.attest(ctx)
	var e *Error
	if errors.As(err, &e) && sessionIsLost(e) { // the broker was restarted, or the evidence took too long
		made, err = c.attest(ctx)
	}
	if err != nil {
		return nil, err
	}
	s = made
	return s, nil
}

// attest makes one handshake.
func (c *Client) attest(ctx context.Context) (*session, error) {
	key, err := kbs.NewKey(c.cfg.Key)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(kbs.NewRequest(c.cfg.Attester.TEE()))
	if err != nil {
		return nil, err
	}
	a, err := c.ask(ctx, question{phase: "auth", method: http.MethodPost, path: "/auth", body: body})
	if err != nil {
		return nil, err
	}
	challenge, err := kbs.ParseChallenge(a.body)
	if err != nil || a.cookie == "" {
		return nil, &Error{Untrusted, "auth", errors.Join(errors.New("no challenge of the protocol"), err)}
	}
	message := kbs.Attestation{InitData: c.cfg.InitData, Nonce: challenge.Nonce, Key: key.Public()}
	digest, err := message.Digest()
	if err != nil {
		return nil, err
	}
	if message.Primary, err = c.cfg.Attester.Evidence(ctx, digest[:]); err != nil {
		return nil, &Error{NoEvidence, "attest", err}
	}
	if body, err = json.Marshal(message); err != nil {
		return nil, &Error{NoEvidence, "attest", err}
	}
	s := &session{cookie: a.cookie, key: key}
	a, err = c.ask(ctx, question{phase: "attest", method: http.MethodPost, path: "/attest", body: body, cookie: s.cookie})
	if err != nil {
		return nil, err
	}
	token, err := kbs.ParseToken(a.body)
	if err != nil {
		return nil, &Error{Untrusted, "attest", err}
	}
	s.token = token.Token
	return s, nil
}

func (c *Client) resource(ctx context.Context, s *session, path string) ([]byte, error) {
	a, err := c.ask(ctx, question{
		phase: "resource", method: http.MethodGet, path: "/resource/" + path, cookie: s.cookie, token: s.token,
	})
	if err != nil {
		return nil, err
	}
	secret, err := s.key.Open(a.body)
	if err == nil && len(secret) == 0 {
		err = errors.New("the secret is empty")
	}
	if err != nil {
		return nil, &Error{Untrusted, "resource", err}
	}
	return secret, nil
}

// question is one request, answer its answer.
type question struct {
	phase, method, path, cookie, token string
	body                               []byte
}

type answer struct {
	body   []byte
	cookie string
}

// once sends a request. After an answer that asks for patience it returns how long, or zero.
func (c *Client) once(ctx context.Context, q question) (a answer, after time.Duration, err error) {
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + kbs.Prefix + q.path
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), bytes.NewReader(q.body))
	if err != nil {
		return a, 0, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "coco")
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.cookie != "" {
		req.Header.Set("Cookie", kbs.Cookie+"="+q.cookie)
	}
	if q.token != "" {
		req.Header.Set("Authorization", "Bearer "+q.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, 0, err
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil {
		// At the deadline the connection is closed. TLS tells the broker before, whose end of the body may still arrive.
		err = ctx.Err()
	}
	if err != nil {
		return a, 0, err
	}
	if len(a.body) > maxAnswer {
		return a, 0, &Error{Untrusted, q.phase, fmt.Errorf("an answer of more than %d bytes", maxAnswer)}
	}
	for _, k := range resp.Cookies() {
		if k.Name == kbs.Cookie && len(k.Value) <= maxCookie {
			a.cookie = k.Value
		}
	}
	if resp.StatusCode != http.StatusOK {
		return a, retryAfter(resp.Header), kbs.ParseError(resp.StatusCode, a.body)
	}
	return a, 0, nil
}
