// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package thim gets the certificates of an AMD chip at Azure: from the trusted hardware identity service of the VM's
// host (THIM), from Azure's certificate cache, and from AMD's key distribution service (KDS), in a configured order.
//
// Answers are kept by chip and patch level. A source whose certificate is for another patch level than the report's is
// passed over: after an update of the firmware the host may still have the old certificate. The certificates are not
// trusted: the verifier judges them.
package thim

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/coco-shim/coco/azure/azhttp"
)

// MetadataURL is where THIM is for each VM at Azure.
const MetadataURL = "http://169.254.169.254"

// Chip names a chip and its patch level, as a report does.
type Chip struct {
	ID [64]byte
	// TCB is REPORTED_TCB as a number: the report's 8 bytes, little-endian.
	TCB uint64
}

// Source is a service that has certificates.
type Source interface {
	// Name is for errors.
	Name() string
	// Chain returns PEM: the chip's certificate and its issuers. It returns ErrOtherTCB if it has the chip's certificate
	// for another patch level.
	Chain(ctx context.Context, c Chip) ([]byte, error)
}

// ErrOtherTCB says that the certificate is for another patch level of the chip.
var ErrOtherTCB = errors.New("the certificate is for another patch level than the report; ask for a new report")

// Store asks sources in order. The zero Store has none. Its methods may be called by several goroutines.
type Store struct {
	Sources []Source

	mu    sync.Mutex
	known map[Chip][]byte // guarded by mu
}

// maxKnown bounds the answers that are kept. A guest has one chip, and seldom a second patch level.
const maxKnown = 8

// Chain returns the chip's certificate and its issuers as PEM.
func (s *Store) Chain(ctx context.Context, c Chip) ([]byte, error) {
	s.mu.Lock()
	chain, ok := s.known[c]
	s.mu.Unlock()
	if ok {
		return chain, nil
	}
	errs := []error{errors.New("certificate of the chip")}
	for _, source := range s.Sources {
		chain, err := source.Chain(ctx, c)
		if err == nil {
			err = certificates(chain)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", source.Name(), err))
			continue
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.known == nil || len(s.known) >= maxKnown {
			s.known = map[Chip][]byte{}
		}
		s.known[c] = chain
		return chain, nil
	}
	return nil, errors.Join(errs...)
}

// certificates checks that PEM has at least a certificate and an issuer, and nothing else.
func certificates(chain []byte) error {
	n := 0
	for rest := bytes.TrimSpace(chain); len(rest) > 0; n++ {
		block, more := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return errors.New("the answer is not PEM of certificates")
		}
		rest = bytes.TrimSpace(more)
	}
	if n < 2 {
		return fmt.Errorf("the answer has %d certificates: the chip's and its issuers are wanted", n)
	}
	return nil
}

// Host is THIM.
type Host struct {
	Client *azhttp.Client
	URL    string
}

// Name returns "THIM".
func (Host) Name() string { return "THIM" }

// Chain asks the host. The host has one certificate, whatever is asked.
func (h Host) Chain(ctx context.Context, c Chip) ([]byte, error) {
	a, err := h.Client.Do(ctx, azhttp.Request{
		Method: http.MethodGet, URL: strings.TrimRight(h.URL, "/") + "/metadata/THIM/amd/certification",
		Header: map[string]string{"Metadata": "true"},
	})
	if err != nil {
		return nil, err
	}
	d, err := Parse(a.Body)
	if err != nil {
		return nil, err
	}
	if d.TCB != c.TCB {
		return nil, fmt.Errorf("it has patch level %016x, the report %016x: %w", d.TCB, c.TCB, ErrOtherTCB)
	}
	return d.Chain, nil
}

// Document is THIM's answer. Containers find it in host-amd-cert-base64 also.
type Document struct {
	Chain []byte // PEM: the chip's certificate and its issuers
	TCB   uint64
}

// Parse reads the JSON of THIM.
func Parse(b []byte) (Document, error) {
	var d struct {
		VCEK  string `json:"vcekCert"`
		Chain string `json:"certificateChain"`
		TCB   string `json:"tcbm"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return Document{}, fmt.Errorf("JSON of THIM: %w", err)
	}
	tcb, err := strconv.ParseUint(d.TCB, 16, 64)
	if err != nil || d.VCEK == "" || d.Chain == "" {
		return Document{}, errors.New("JSON of THIM: vcekCert, certificateChain or tcbm is missing, or tcbm is no number")
	}
	return Document{[]byte(strings.TrimSpace(d.VCEK) + "\n" + d.Chain), tcb}, nil
}

// Cache is Azure's certificate cache.
type Cache struct {
	Client *azhttp.Client
	URL    string
	// ClientID is told to the cache; empty: nothing.
	ClientID string
}

// Name returns "certificate cache".
func (Cache) Name() string { return "certificate cache" }

// Chain asks the cache.
func (k Cache) Chain(ctx context.Context, c Chip) ([]byte, error) {
	base, err := azhttp.Endpoint(k.URL)
	if err != nil {
		return nil, err
	}
	u := fmt.Sprintf("%s/SevSnpVM/certificates/%s/%016x?api-version=2020-10-15-preview", base,
		hex.EncodeToString(c.ID[:]), c.TCB)
	if k.ClientID != "" {
		u += "&clientId=" + url.QueryEscape(k.ClientID)
	}
	a, err := k.Client.Do(ctx, azhttp.Request{Method: http.MethodGet, URL: u})
	return a.Body, err
}
