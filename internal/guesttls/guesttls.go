// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guesttls makes HTTP transports for programs in a guest. There the host chooses the environment, the network
// and the clock, so a transport asks no proxy of the environment, bounds each wait, and checks certificates at times
// that it takes from the certificates themselves.
package guesttls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second
	maxHeader     = 64 << 10
	maxChain      = 8
)

// Transport returns a transport for TLS of this version (such as tls.VersionTLS13) or later. verify gets the server's
// chain, leaf first, and the name that the server was asked by, "" for an address. It decides alone whether the server
// is trusted.
func Transport(version uint16, verify func(chain []*x509.Certificate, host string) error) *http.Transport {
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           2,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		TLSClientConfig: &tls.Config{
			MinVersion:         version,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, without the guest's clock
			VerifyConnection:   func(s tls.ConnectionState) error { return verify(s.PeerCertificates, s.ServerName) },
		},
	}
}

// Verify accepts a chain for a host if it leads to one of the roots (nil: of the system's CAs) and was
// valid as a whole at any time. The last of the times at which a certificate of it begins to be valid is such a time,
// if there is one. So an expired chain is accepted: the guest cannot know the time.
func Verify(chain, roots []*x509.Certificate, host string) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("a chain of %d certificates", len(chain))
	}
	if host == "" {
		return errors.New("a certificate for no name")
	}
	opts := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool()}
	if roots != nil {
		opts.Roots = x509.NewCertPool()
	}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	var first error
	for _, c := range slices.Concat(chain, roots) {
		opts.CurrentTime = c.NotBefore
		_, err := chain[0].Verify(opts)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}
