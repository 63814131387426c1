// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/kbs/kbstest"
)

// deadline is that of the clients of these tests.
const deadline = 3 * time.Second

// misbehaviour is what a broker does, and what its client makes of it.
type misbehaviour struct {
	mood          kbstest.Mood
	changed       bool   // its certificate
	want          Reason // "": the secret
	says          string
	after, before time.Duration
}

// Each way in which a broker can misbehave ends by the deadline with its reason, or with the secret when the broker is
// back; never with an empty secret. It is so from the broker's first answer on, and after it has given a token.
func TestBrokersThatMisbehave(t *testing.T) {
	const soon, end = deadline / 2, deadline + time.Second
	var wg sync.WaitGroup
	for name, tc := range map[string]misbehaviour{
		"silent":            {mood: kbstest.Silent(), want: Unavailable, says: "deadline", after: deadline, before: end},
		"slow":              {mood: kbstest.Trickle(), want: Unavailable, says: "deadline", after: deadline, before: end},
		"gone":              {mood: kbstest.Gone(1000), want: Unavailable, before: end},
		"back":              {mood: kbstest.Gone(2), before: end},
		"no TLS":            {mood: kbstest.NoTLS(), want: Untrusted, says: "not look like a TLS handshake", before: soon},
		"garbage with 200":  {mood: kbstest.Garbage(http.StatusOK), want: Untrusted, before: soon},
		"garbage with 400":  {mood: kbstest.Garbage(http.StatusBadRequest), want: Untrusted, before: soon},
		"garbage with 502":  {mood: kbstest.Garbage(http.StatusBadGateway), want: Unavailable, says: "502", before: end},
		"busy for a second": {mood: kbstest.Busy(1, "1"), after: time.Second, before: end},
		"busy for an hour":  {mood: kbstest.Busy(1000, "3600"), want: Unavailable, says: "too many", before: soon},
		"busy for ever":     {mood: kbstest.Busy(1000, "1e30"), want: Unavailable, says: "too many", before: end},
		"busy until a date": {mood: kbstest.Busy(1, "Fri, 01 Jan 2100 00:00:00 GMT"), before: end},
		"empty":             {mood: kbstest.Empty(), want: Untrusted, says: "the secret is empty", before: soon},
		"other certificate": {changed: true, want: Untrusted, says: errCertificate.Error(), before: soon},
	} {
		wg.Go(tc.checks(t, name, false))
		wg.Go(tc.checks(t, name+", after a token", true))
	}
	wg.Wait() // they wait most of the time, so they run together
}

// checks starts a broker, and returns a function that asks it while it misbehaves, and again when it is back.
func (m misbehaviour) checks(t *testing.T, name string, attested bool) func() {
	t.Helper()
	b := kbstest.Start(t, "127.0.0.1", map[string]string{"a/b/c": "secret"})
	c, err := New(Config{URL: b.URL(), CertPEM: b.CertPEM(), Attester: attester{}, Timeout: deadline})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ask := func(when string, as misbehaviour) {
		got, err := c.Resource(t.Context(), "a/b/c")
		var e *Error
		switch {
		case as.want == "" && (err != nil || string(got) != "secret"):
			t.Errorf("%s, %s: got %q, %v", name, when, got, err)
		case as.want == "":
		case got != nil || !errors.As(err, &e) || e.Reason != as.want || !strings.Contains(err.Error(), as.says):
			t.Errorf("%s, %s: got %q, %v; want %s with %q", name, when, got, err, as.want, as.says)
		}
	}
	return func() {
		if attested {
			ask("before", misbehaviour{})
		}
		b.Behave(m.mood)
		if m.changed {
			b.ChangeCertificate()
		}
		began := time.Now()
		ask("meanwhile", m)
		if took := time.Since(began); took < m.after || took > m.before {
			t.Errorf("%s: it took %v, want %v to %v", name, took, m.after, m.before)
		}
		if !m.changed {
			b.Behave(kbstest.Mood{})
			ask("when the broker is back", misbehaviour{})
		}
	}
}
