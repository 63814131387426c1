// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fake imitates the services of Azure that take part in a release of a key: attestation (MAA), Key Vault and
// Managed HSM, Entra, the metadata service with THIM, and the certificate cache. It speaks their protocols, so that
// clients of others work against it unchanged.
//
// It proves nothing to anybody: its CA is made at the first start and lies in its directory. But it is honest. Evidence
// is verified as by coco verify, a policy is evaluated as by coco azure policy check, keys are really wrapped. Faults
// are made only on demand (Fault).
//
// Each service has a port of its own. New makes the state, Start listens, Close ends everything that Start began.
package fake

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coco-shim/coco/attestation/snp"
)

// Service names a service.
type Service string

// Services.
const (
	MAA      Service = "maa"
	Vault    Service = "vault"
	HSM      Service = "hsm"
	Entra    Service = "entra"
	Metadata Service = "metadata" // IMDS and THIM; HTTP without TLS, as at Azure
	Cache    Service = "cache"
)

// Services are all of them.
var Services = []Service{MAA, Vault, HSM, Entra, Metadata, Cache}

// Options say how a fake works.
type Options struct {
	// Dir holds CA and keys; empty: nothing is kept.
	Dir string
	// Host is the name that certificates and URLs have. Empty means localhost.
	Host string
	// Ports of services; 0 or absent: any.
	Ports map[Service]int
	// Verifier verifies evidence. Nil trusts AMD's roots.
	Verifier *snp.Verifier
	// AllowInsecure accepts evidence that proves nothing, and marks the tokens for it.
	AllowInsecure bool
	// Chain and TCB are the host's certificates (PEM) and their patch level, for THIM and the cache.
	Chain []byte
	TCB   uint64
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	// Skew is added to the clock in the header Date.
	Skew time.Duration
}

// Fake is a set of services.
type Fake struct {
	opts   Options
	state  state
	tokens map[string]bearer
	urls   map[Service]string
	close  []func() error

	mu     sync.Mutex
	faults []Fault
	asked  map[Service]int
}

// bearer is a token of Entra or the metadata service.
type bearer struct {
	resource string
	until    time.Time
}

// New makes a fake, or reads its state.
func New(o Options) (*Fake, error) {
	if o.Host == "" {
		o.Host = "localhost"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Verifier == nil {
		v := snp.AMD()
		o.Verifier = &v
	}
	f := &Fake{opts: o, tokens: map[string]bearer{}, urls: map[Service]string{}, asked: map[Service]int{}}
	return f, f.load()
}

const stateFile = "state.json"

func (f *Fake) load() error {
	f.state = state{Keys: map[string]*key{}}
	path := filepath.Join(f.opts.Dir, stateFile)
	b, err := os.ReadFile(path)
	switch {
	case f.opts.Dir != "" && err == nil:
		if err := json.Unmarshal(b, &f.state); err != nil {
			return fmt.Errorf("state of the fake %s: %w", path, err)
		}
		return f.state.parse()
	case f.opts.Dir != "" && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("state of the fake: %w", err)
	}
	if err := f.state.make(f.opts.Now()); err != nil {
		return err
	}
	return f.save()
}

// save writes the state. The caller holds mu, or is alone.
func (f *Fake) save() error {
	if f.opts.Dir == "" {
		return nil
	}
	b, err := json.Marshal(f.state)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("state of the fake: %w", err)
	}
	tmp := filepath.Join(f.opts.Dir, stateFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("state of the fake: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(f.opts.Dir, stateFile)); err != nil {
		return fmt.Errorf("state of the fake: %w", err)
	}
	return nil
}

// CA returns the CA's certificate as PEM.
func (f *Fake) CA() []byte { return f.state.caPEM() }

// URL returns where a service is.
func (f *Fake) URL(s Service) string { return f.urls[s] }

// Asked returns how many requests a service has got. Tests count with it.
func (f *Fake) Asked(s Service) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[s]
}

const (
	readTimeout = 10 * time.Second
	maxHeader   = 64 << 10
	maxBody     = 1 << 20
	maxTokens   = 10_000
)

// Start listens on the loopback interface.
func (f *Fake) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	cert, err := f.state.serverCert(f.opts.Host, f.opts.Now())
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	for _, s := range Services {
		l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", f.opts.Ports[s]))
		if err != nil {
			return fmt.Errorf("listen for %s: %w", s, err)
		}
		scheme := "https"
		if s == Metadata {
			scheme = "http"
		}
		f.urls[s] = fmt.Sprintf("%s://%s:%d", scheme, f.opts.Host, l.Addr().(*net.TCPAddr).Port)
		server := &http.Server{
			Handler: f.handler(s), ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, MaxHeaderBytes: maxHeader,
			ErrorLog: quiet,
		}
		if s != Metadata {
			server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
			l = tls.NewListener(l, server.TLSConfig)
		}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		f.close = append(f.close, func() error {
			err := server.Close()
			if e := <-done; !errors.Is(e, http.ErrServerClosed) {
				err = errors.Join(err, e)
			}
			return err
		})
	}
	return nil
}

// Close ends the services.
func (f *Fake) Close() error {
	var errs []error
	for _, c := range f.close {
		errs = append(errs, c())
	}
	f.close = nil
	return errors.Join(errs...)
}

// handler is a service behind its faults.
func (f *Fake) handler(s Service) http.Handler {
	serve := map[Service]http.HandlerFunc{
		MAA: f.maa, Vault: f.vault, HSM: f.vault, Entra: f.entra, Metadata: f.metadata, Cache: f.cache,
	}[s]
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.asked[s]++
		f.mu.Unlock()
		w.Header().Set("Date", f.opts.Now().Add(f.opts.Skew).UTC().Format(http.TimeFormat))
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if !f.disturb(w, r, s) {
			serve(w, r.WithContext(context.WithValue(r.Context(), serviceKey{}, s)))
		}
	})
}

type serviceKey struct{}

// service returns the service that a request came to.
func service(r *http.Request) Service {
	s, _ := r.Context().Value(serviceKey{}).(Service)
	return s
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse writes an error as Azure does.
func refuse(w http.ResponseWriter, status int, code, format string, args ...any) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": fmt.Sprintf(format, args...)}})
}

// read decodes the JSON of a request.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadParameter", "the body is no JSON of this call: %v", err)
		return false
	}
	return true
}
