// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package azhttp sends requests to Azure's services for the clients beside it.
//
// A request has at most Attempts tries until the caller's deadline; between them the client waits as long as the
// service asks by Retry-After, else twice as long as before. An answer has at most 1 MiB. A redirect is followed on
// the same host only, so that no service can have the client ask another one.
//
// The guest's clock is the host's to set. So a server's certificate chain is accepted if it was valid as a whole at the
// time at which its youngest certificate began to be valid, and an answer tells the service's own time (Answer.Time).
package azhttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/internal/guesttls"
)

// MaxAnswer is the length of the largest answer that is read.
const MaxAnswer = 1 << 20

const (
	maxRedirects = 3

	firstPause      = 500 * time.Millisecond
	longestPause    = 15 * time.Second
	longestAsked    = 2 * time.Minute // a service may ask for at most this patience
	defaultAttempts = 4

	// MaxSkew is how far the guest's clock may be from a service's before the service's counts.
	MaxSkew = 5 * time.Minute
)

// Client sends requests. Its methods may be called by several goroutines.
type Client struct {
	// Service is a name for errors: "attestation service".
	Service string
	HTTP    *http.Client
	// Attempts is the largest number of requests for one answer. Zero means 4.
	Attempts int
	// Pause is the wait before the second request. Zero means half a second.
	Pause time.Duration
	// Now is the guest's clock. Nil means time.Now.
	Now func() time.Time
}

// Request is one request.
type Request struct {
	Method, URL string
	Header      map[string]string
	Body        []byte
}

// Answer is an answer with status 2xx, or 401 (see Error).
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Time is the time to judge the answer at.
	Time Time
}

// Time is a time and whose clock told it.
type Time struct {
	At time.Time
	// Source is "guest", or "service" if the guest's clock is off by more than MaxSkew.
	Source string
}

// Error is an answer that is no success, or the last failure of a connection.
type Error struct {
	Service string
	// Status is 0 if there was no answer.
	Status int
	Header http.Header
	// Code and Message are those of the service's JSON.
	Code, Message string
	Attempts      int
	Cause         error
}

// Error returns one line that names the service and the cause.
func (e *Error) Error() string {
	tries := ""
	if e.Attempts > 1 {
		tries = fmt.Sprintf(" after %d attempts", e.Attempts)
	}
	if e.Cause != nil {
		return fmt.Sprintf("%s: no answer%s: %v", e.Service, tries, e.Cause)
	}
	text := fmt.Sprintf("%s: answers %d %s%s", e.Service, e.Status, http.StatusText(e.Status), tries)
	if e.Code != "" || e.Message != "" {
		text += fmt.Sprintf(": %.60s: %.300s", e.Code, e.Message)
	}
	return text
}

// Unwrap returns the failure of the connection.
func (e *Error) Unwrap() error { return e.Cause }

// errFinal marks failures that a repeat cannot cure.
type errFinal struct{ error }

// Unwrap returns the failure.
func (e errFinal) Unwrap() error { return e.error }

// Certificates reads one or more in PEM, as roots for New.
func Certificates(b []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return out, nil
}

// New returns an HTTP client that trusts the system's CAs, or those of roots instead. It asks no proxy, since the host
// chooses the environment.
func New(roots []*x509.Certificate) *http.Client {
	t := guesttls.Transport(tls.VersionTLS12, nil)
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, errFinal{err}
		}
		raw, err := t.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		cfg := t.TLSClientConfig.Clone()
		cfg.ServerName = host
		cfg.VerifyConnection = func(s tls.ConnectionState) error { // s has no name if it is an address
			if err := guesttls.Verify(s.PeerCertificates, roots, host); err != nil {
				return errFinal{fmt.Errorf("certificate of %q: %w", host, err)}
			}
			return nil
		}
		c := tls.Client(raw, cfg)
		ctx, cancel := context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		return c, nil
	}
	return &http.Client{CheckRedirect: sameHost, Transport: t}
}

// sameHost follows a redirect to the same scheme, host and port.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects {
		return errFinal{fmt.Errorf("more than %d redirects", maxRedirects)}
	}
	if req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return errFinal{fmt.Errorf("a redirect from %s to %.100s: other hosts are not asked", first.Host, req.URL.Host)}
	}
	return nil
}

// Endpoint checks the URL of a service: https, a host, no user, query or fragment. It returns the URL without a slash
// at its end.
func Endpoint(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%.200q is no https://HOST", text)
	}
	return strings.TrimRight(text, "/"), nil
}

// Do sends the request until there is an answer that is final.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	attempts, pause := c.Attempts, c.Pause
	if attempts <= 0 {
		attempts = defaultAttempts
	}
	if pause <= 0 {
		pause = firstPause
	}
	for n := 1; ; n++ {
		a, err := c.once(ctx, r)
		if err == nil {
			return a, nil
		}
		e := c.explain(err, n)
		if n >= attempts || !again(e) || ctx.Err() != nil {
			return Answer{}, e
		}
		wait := pause/2 + rand.N(pause/2+1) //nolint:gosec // it spreads load, and hides nothing
		wait = max(wait, c.retryAfter(e.Header))
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return Answer{}, e
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Answer{}, e
		}
		pause = min(2*pause, longestPause)
	}
}

func (c *Client) explain(err error, n int) *Error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Cause: err}
	}
	e.Service, e.Attempts = c.Service, n
	return e
}

// again tells whether a repeat may help.
func again(e *Error) bool {
	var final errFinal
	switch {
	case errors.As(e.Cause, &final):
		return false
	case e.Status == 0, e.Status == http.StatusRequestTimeout, e.Status == http.StatusTooManyRequests:
		return true
	case e.Status == http.StatusGone: // the metadata service asks so for patience while it is updated
		return true
	}
	return e.Status >= http.StatusInternalServerError
}

func (c *Client) once(ctx context.Context, r Request) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return Answer{}, errFinal{err}
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
	}
	req.Header.Set("User-Agent", "coco")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // its text has the URL with the query, and says nothing more
			err = u.Err
		}
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	switch {
	case err != nil:
		return Answer{}, err
	case len(body) > MaxAnswer:
		return Answer{}, errFinal{fmt.Errorf("an answer of more than %d bytes", MaxAnswer)}
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		code, message := faultOf(body)
		return Answer{}, &Error{Status: resp.StatusCode, Header: resp.Header, Code: code, Message: message}
	}
	return Answer{resp.StatusCode, resp.Header, body, c.time(resp.Header)}, nil
}

// faultOf reads the JSON of an error: {"error":{"code","message"}} of most services, {"error","error_description"} of
// Entra and the metadata service.
func faultOf(body []byte) (code, message string) {
	var e struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
	}
	if json.Unmarshal(body, &e) != nil {
		return "", ""
	}
	var inner struct{ Code, Message string }
	if json.Unmarshal(e.Error, &inner) == nil {
		return inner.Code, inner.Message
	}
	if json.Unmarshal(e.Error, &code) != nil {
		return "", ""
	}
	return code, e.Description
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// time compares the service's Date with the guest's clock.
func (c *Client) time(h http.Header) Time {
	now := c.now()
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || date.Sub(now).Abs() <= MaxSkew {
		return Time{now, "guest"}
	}
	return Time{date, "service"}
}

// retryAfter reads how long a service asks to wait, bounded.
func (c *Client) retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 16); err == nil {
		return min(time.Duration(n)*time.Second, longestAsked)
	}
	date, errDate := http.ParseTime(h.Get("Date"))
	at, err := http.ParseTime(text)
	if err != nil || errDate != nil {
		return 0
	}
	return min(max(at.Sub(date), 0), longestAsked)
}
