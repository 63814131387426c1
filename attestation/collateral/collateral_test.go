// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package collateral_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/collateral"
)

// service is a vendor's service in memory. Its clock moves only when a test says so.
type service struct {
	mu      sync.Mutex
	asked   int
	status  int
	header  http.Header
	body    string
	err     error
	entered chan struct{}
	release chan struct{}
	now     time.Time
}

func (s *service) Do(r *http.Request) (*http.Response, error) {
	if s.entered != nil {
		s.entered <- struct{}{}
		<-s.release
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	return &http.Response{
		StatusCode: s.status, Status: http.StatusText(s.status), Header: s.header,
		Body: io.NopCloser(strings.NewReader(s.body)), Request: r,
	}, nil
}

func newService() *service {
	return &service{status: http.StatusOK, body: "document", header: http.Header{}, now: time.Now()}
}

func (s *service) store(dir string) *collateral.Store {
	return &collateral.Store{Dir: dir, Service: s, Now: func() time.Time { return s.now }}
}

var request = attestation.Request{
	Kind: "kind", Name: "vcek/aa/file.der", URL: "https://vendor.example/a", ChainHeader: "Issuer-Chain",
}

func get(t *testing.T, s *collateral.Store, r attestation.Request) (string, error) {
	t.Helper()
	d, err := s.Get(t.Context(), r)
	return string(d.Data), err
}

func TestADocumentIsAskedForOnce(t *testing.T) {
	v := newService()
	v.header.Set("Issuer-Chain", "chain")
	dir := t.TempDir()
	s := v.store(dir)
	for range 3 {
		if got, err := get(t, s, request); got != "document" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	d, err := v.store(dir).Get(t.Context(), request) // a later run
	if err != nil || string(d.Data) != "document" || string(d.Chain) != "chain" || d.Kind != "kind" || v.asked != 1 {
		t.Errorf("%+v, %v, asked %d times", d, err, v.asked)
	}
	offline := collateral.Store{Dir: dir, Now: time.Now}
	if got, err := get(t, &offline, request); got != "document" || err != nil {
		t.Errorf("offline: %q, %v", got, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "vcek/aa/*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestTwoCallersShareOneQuestion(t *testing.T) {
	v := newService()
	v.entered, v.release = make(chan struct{}), make(chan struct{})
	s := v.store("")
	results := make(chan error, 2)
	ask := func() {
		_, err := s.Get(t.Context(), request)
		results <- err
	}
	go ask()
	<-v.entered
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ended, request); !errors.Is(err, context.Canceled) { // waits for the same answer
		t.Errorf("a caller that gives up: %v", err)
	}
	go ask()
	close(v.release)
	if err := errors.Join(<-results, <-results); err != nil || v.asked != 1 {
		t.Errorf("%v, asked %d times", err, v.asked)
	}
}

func TestAServiceThatRefusesIsLeftAlone(t *testing.T) {
	v := newService()
	v.status = http.StatusTooManyRequests
	v.header.Set("Retry-After", "60")
	s := v.store("")
	other := request
	other.Name, other.URL = "other", "https://vendor.example/b"
	for range 3 {
		if _, err := get(t, s, request); err == nil || errors.Is(err, collateral.ErrAbsent) {
			t.Fatalf("429: %v", err)
		}
		if _, err := get(t, s, other); err == nil {
			t.Fatal("another document of the same host is there")
		}
	}
	if v.asked != 1 {
		t.Errorf("asked %d times, want once", v.asked)
	}
	v.status = http.StatusOK
	v.now = v.now.Add(61 * time.Second)
	if got, err := get(t, s, request); got != "document" || err != nil {
		t.Errorf("after the pause: %q, %v", got, err)
	}
}

func TestPausesGrowAndAreBounded(t *testing.T) {
	v := newService()
	v.err = errors.New("no route")
	s := v.store("")
	var pause, last time.Duration
	for range 4000 {
		asked := v.asked
		if _, err := get(t, s, request); err == nil {
			t.Fatal("a document without an answer")
		}
		if v.asked > asked {
			if pause < last || pause > 10*time.Minute {
				t.Errorf("a pause of %s after one of %s", pause, last)
			}
			pause, last = 0, pause
		}
		pause += time.Second
		v.now = v.now.Add(time.Second)
	}
	if v.asked < 10 || v.asked > 20 {
		t.Errorf("asked %d times within 4000 seconds", v.asked)
	}
}

func TestWhatAServiceMayNotAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*service)
		url    string
		absent bool
	}{
		"not found":   {func(v *service) { v.status = http.StatusNotFound }, request.URL, true},
		"redirect":    {func(v *service) { v.status = http.StatusFound }, request.URL, false},
		"too large":   {func(v *service) { v.body = strings.Repeat("x", 1<<20+1) }, request.URL, false},
		"plain http":  {func(*service) {}, "http://vendor.example/a", false},
		"no URL":      {func(*service) {}, "", true},
		"unavailable": {func(v *service) { v.status = http.StatusServiceUnavailable }, request.URL, false},
	} {
		v := newService()
		tc.change(v)
		r := request
		r.URL = tc.url
		if _, err := get(t, v.store(""), r); err == nil || errors.Is(err, collateral.ErrAbsent) != tc.absent {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOldFilesAreRenewedIfTheVendorAnswers(t *testing.T) {
	v := newService()
	dir := t.TempDir()
	day := func(attestation.Request) time.Duration { return 24 * time.Hour }
	if _, err := get(t, v.store(dir), request); err != nil {
		t.Fatal(err)
	}
	v.body = "newer"
	for _, tc := range []struct {
		after  time.Duration
		status int
		want   string
	}{
		{time.Hour, http.StatusOK, "document"},
		{48 * time.Hour, http.StatusTooManyRequests, "document"},
		{48 * time.Hour, http.StatusOK, "newer"},
	} {
		s := v.store(dir)
		s.MaxAge, v.status, v.now = day, tc.status, time.Now().Add(tc.after)
		if got, err := get(t, s, request); got != tc.want || err != nil {
			t.Errorf("after %s: %q, %v; want %q", tc.after, got, err, tc.want)
		}
	}
}

func TestNamesStayInTheDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	r := request
	r.Name = "../secret"
	if got, err := get(t, newService().store(inner), r); err == nil {
		t.Errorf("%q is read from outside", got)
	}
}

func TestTheClientFollowsNoRedirect(t *testing.T) {
	c := collateral.Client(time.Second)
	if err := c.CheckRedirect(nil, nil); !errors.Is(err, http.ErrUseLastResponse) || c.Timeout != time.Second {
		t.Errorf("%v, %s", err, c.Timeout)
	}
}
