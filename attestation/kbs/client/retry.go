// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
)

// The pause doubles from the first to the longest, and a random half of it is left out, so that the pods of a node that
// starts do not ask together.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 15 * time.Second
)

// ask repeats a request until it is answered, a repeat cannot help, or the deadline comes.
func (c *Client) ask(ctx context.Context, q question) (answer, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		a, after, err := c.once(ctx, q)
		if err == nil {
			return a, nil
		}
		e := classify(q.phase, err)
		if e.Reason != Unavailable || ctx.Err() != nil {
			return a, e
		}
		wait := pause/2 + rand.N(pause/2) //nolint:gosec // it spreads load, and hides nothing
		wait = max(wait, after)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			e.Cause = fmt.Errorf("%w; the next attempt would come after the deadline", e.Cause)
			return a, e
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a, e
		}
	}
}

// classify gives an error its reason. The type in a broker's answer counts more than the status: Trustee answers almost
// everything with 401.
func classify(phase string, err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	var record tls.RecordHeaderError
	var alert *net.OpError // package tls says "remote error" when the other side sent an alert
	if errors.Is(err, errCertificate) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) ||
		errors.As(err, &alert) && alert.Op == "remote error" {
		return &Error{Untrusted, phase, err}
	}
	var e *kbs.Error
	if !errors.As(err, &e) {
		return &Error{Unavailable, phase, err}
	}
	return &Error{reasonOf(phase, e), phase, e}
}

// reasonOf gives an answer its reason.
func reasonOf(phase string, e *kbs.Error) Reason {
	switch {
	case e.Status == http.StatusTooManyRequests || e.Status >= 500:
		return Unavailable
	case e.Type == kbs.PolicyDeny:
		return Denied
	case e.Type == kbs.PluginNotFound || e.Type == kbs.InvalidRequestPath || e.Status == http.StatusNotFound:
		return NotFound
	case e.Type == kbs.PluginInternal: // Trustee's answer for a missing resource
		return NotFound
	case e.Type == "":
		return Untrusted
	case phase == "resource" && e.Status == http.StatusForbidden:
		return Denied
	}
	return Refused
}

// tokenIsStale tells whether new evidence may help: only answers about the token are 401 with these types.
func tokenIsStale(err error) bool {
	var e *kbs.Error
	return errors.As(err, &e) && e.Status == http.StatusUnauthorized &&
		(e.Type == kbs.TokenNotFound || e.Type == kbs.TokenVerifierError)
}

// sessionIsLost tells whether the broker does not know the session of an attestation.
func sessionIsLost(err *Error) bool {
	var e *kbs.Error
	return err.Phase == "attest" && errors.As(err.Cause, &e) && e.Status == http.StatusUnauthorized &&
		strings.Contains(strings.ToLower(e.Detail), "session")
}

// retryAfter reads how long a broker asks to wait, in seconds. Dates would need a clock.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
