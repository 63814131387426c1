// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package collateral gets the documents of vendors that verifiers need: from a directory, and from the vendor's service
// if the caller allows that.
//
// A document is asked for once: answers are kept in memory and, if there is a directory, as a file under the request's
// name. Two callers that need the same document share one question. A vendor's service that answers 429 or 503 is left
// alone for as long as it says, for every document; so is one that failed. Documents are signed, so that neither the
// directory nor the network is trusted: the verifier decides, also on their age.
package collateral

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/coco-shim/coco/attestation"
)

const (
	maxDocument = 1 << 20
	// minPause and maxPause bound how long a service is left alone after a failure.
	minPause = time.Second
	maxPause = 10 * time.Minute
)

// ErrAbsent says that a document is neither in the directory nor known to the vendor, or that no service may be asked.
var ErrAbsent = errors.New("no such document")

// Doer sends requests: an http.Client. It should not follow redirects; see Client.
type Doer interface {
	Do(*http.Request) (*http.Response, error)
}

// Client returns a client that follows no redirect, and ends a request after the timeout.
func Client(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// Store gets documents. Its methods may be called by several goroutines.
type Store struct {
	// Dir holds documents by the names of their requests. Without one nothing is kept beyond the store's life.
	Dir string
	// Service asks the vendors. Without one no vendor is asked.
	Service Doer
	// Now is the clock for pauses and ages.
	Now func() time.Time
	// MaxAge is how old a file may be before the vendor is asked again. Zero means that a file serves for ever. The old
	// file serves if the vendor does not answer.
	MaxAge func(attestation.Request) time.Duration

	mu     sync.Mutex
	known  map[string]*answer   // guarded by mu
	paused map[string]time.Time // by host; guarded by mu
	pauses map[string]int       // how often in a row; guarded by mu
}

// answer is a document that is there or being asked for.
type answer struct {
	done chan struct{}
	doc  attestation.Document
	err  error
}

// Get returns the document of a request. An error of the service is kept only as long as the service is left alone.
func (s *Store) Get(ctx context.Context, r attestation.Request) (attestation.Document, error) {
	s.mu.Lock()
	if s.known == nil {
		s.known, s.paused, s.pauses = map[string]*answer{}, map[string]time.Time{}, map[string]int{}
	}
	a, asked := s.known[r.Name]
	if !asked {
		a = &answer{done: make(chan struct{})}
		s.known[r.Name] = a
	}
	s.mu.Unlock()
	if asked {
		select {
		case <-a.done:
			return a.doc, a.err
		case <-ctx.Done():
			return attestation.Document{}, fmt.Errorf("wait for %s: %w", r.Name, ctx.Err())
		}
	}
	a.doc, a.err = s.get(ctx, r)
	if a.err != nil && !errors.Is(a.err, ErrAbsent) {
		s.mu.Lock()
		delete(s.known, r.Name)
		s.mu.Unlock()
	}
	close(a.done)
	return a.doc, a.err
}

// get reads the file, or asks the vendor and writes it.
func (s *Store) get(ctx context.Context, r attestation.Request) (attestation.Document, error) {
	doc, age, err := s.read(r)
	if err != nil && !errors.Is(err, ErrAbsent) {
		return attestation.Document{}, err
	}
	have := err == nil
	if have && (s.Service == nil || r.URL == "" || !s.old(r, age)) {
		return doc, nil
	}
	fresh, err := s.ask(ctx, r)
	switch {
	case err == nil:
		return fresh, s.write(r, fresh)
	case have:
		return doc, nil
	}
	return attestation.Document{}, err
}

func (s *Store) old(r attestation.Request, age time.Duration) bool {
	if s.MaxAge == nil {
		return false
	}
	limit := s.MaxAge(r)
	return limit > 0 && age > limit
}

// chainSuffix names the file of a document's chain.
const chainSuffix = ".chain"

// read returns the file of a document and its age.
func (s *Store) read(r attestation.Request) (attestation.Document, time.Duration, error) {
	if s.Dir == "" {
		return attestation.Document{}, 0, ErrAbsent
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return attestation.Document{}, 0, fmt.Errorf("directory of collateral: %w", err)
	}
	defer root.Close()
	doc := attestation.Document{Kind: r.Kind, Name: filepath.Join(s.Dir, r.Name)}
	var at time.Time
	if doc.Data, at, err = readFile(root, r.Name); errors.Is(err, fs.ErrNotExist) {
		return doc, 0, ErrAbsent
	} else if err != nil {
		return doc, 0, fmt.Errorf("collateral: %w", err)
	}
	if r.ChainHeader != "" {
		if doc.Chain, _, err = readFile(root, r.Name+chainSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return doc, 0, fmt.Errorf("collateral: %w", err)
		}
	}
	return doc, s.Now().Sub(at), nil
}

func readFile(root *os.Root, name string) ([]byte, time.Time, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("%s is not a regular file", name)
	}
	b, err := bounded(f, name)
	return b, info.ModTime(), err
}

// bounded reads a document that may not be larger than any of a vendor is.
func bounded(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxDocument)
	}
	return b, nil
}

// write keeps a document. A reader sees the old file or the new one, never a part.
func (s *Store) write(r attestation.Request, d attestation.Document) error {
	if s.Dir == "" {
		return nil
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return fmt.Errorf("directory of collateral: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(r.Name), 0o755); err != nil {
		return fmt.Errorf("keep %s: %w", r.Name, err)
	}
	if len(d.Chain) > 0 {
		if err := replace(root, r.Name+chainSuffix, d.Chain); err != nil {
			return fmt.Errorf("keep %s: %w", r.Name, err)
		}
	}
	if err := replace(root, r.Name, d.Data); err != nil {
		return fmt.Errorf("keep %s: %w", r.Name, err)
	}
	return nil
}

func replace(root *os.Root, name string, b []byte) error {
	tmp := fmt.Sprintf("%s.%d.tmp", name, os.Getpid())
	err := root.WriteFile(tmp, b, 0o644)
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return nil
}

// ask gets a document from the vendor.
func (s *Store) ask(ctx context.Context, r attestation.Request) (attestation.Document, error) {
	if s.Service == nil || r.URL == "" {
		return attestation.Document{}, fmt.Errorf("%s: %w", r.Name, ErrAbsent)
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" {
		return attestation.Document{}, fmt.Errorf("%s: %q is not a URL with https", r.Name, r.URL)
	}
	if until, ok := s.pause(u.Host); ok {
		return attestation.Document{}, fmt.Errorf("%s: %s is left alone until %s, since it refused or failed",
			r.Name, u.Host, until.UTC().Format(time.RFC3339))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		return attestation.Document{}, err
	}
	resp, err := s.Service.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			s.leave(u.Host, "")
		}
		return attestation.Document{}, fmt.Errorf("fetch %s: %w", r.Name, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return attestation.Document{}, fmt.Errorf("%s does not know %s: %w", u.Host, r.Name, ErrAbsent)
	case resp.StatusCode != http.StatusOK:
		s.leave(u.Host, resp.Header.Get("Retry-After"))
		return attestation.Document{}, fmt.Errorf("fetch %s: %s answers %s", r.Name, u.Host, resp.Status)
	}
	d := attestation.Document{Kind: r.Kind, Name: r.URL}
	if d.Data, err = bounded(resp.Body, r.URL); err != nil {
		return attestation.Document{}, fmt.Errorf("fetch %s: %w", r.Name, err)
	}
	if r.ChainHeader != "" {
		d.Chain = []byte(resp.Header.Get(r.ChainHeader))
	}
	s.mu.Lock()
	delete(s.pauses, u.Host)
	s.mu.Unlock()
	return d, nil
}

// pause tells until when a host is left alone.
func (s *Store) pause(host string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	until := s.paused[host]
	return until, s.Now().Before(until)
}

// leave lets a host alone for as long as it asked, or twice as long as the last time.
func (s *Store) leave(host, retryAfter string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := minPause << min(s.pauses[host], 10)
	s.pauses[host]++
	if seconds, err := strconv.Atoi(retryAfter); err == nil && seconds > 0 {
		wait = time.Duration(min(seconds, int(maxPause/time.Second))) * time.Second
	} else if at, err := http.ParseTime(retryAfter); err == nil {
		wait = at.Sub(s.Now())
	}
	s.paused[host] = s.Now().Add(min(max(wait, minPause), maxPause))
}
