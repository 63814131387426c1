// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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

// errCertificate says that the other side is not the configured broker.
var errCertificate = errors.New("the broker's certificate is not the one that is configured")

// NewTransport returns a transport that trusts nothing but these certificates.
func NewTransport(host string, certPEM []byte) (*http.Transport, error) {
	var roots []*x509.Certificate
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the broker's certificate: a PEM block of type %.40q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the broker's certificate: %w", err)
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, errors.New("the broker's certificate: no PEM block; the system's CAs are not used")
	}
	return &http.Transport{
		Proxy:                  nil, // the host chooses the environment
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           2,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			ServerName:         host,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, without the guest's clock
			VerifyConnection: func(s tls.ConnectionState) error {
				return verify(s.PeerCertificates, roots, host)
			},
		},
	}, nil
}

// verify accepts a chain that leads to a configured certificate if it was valid as a whole at any time. The last of the
// times at which a certificate of it begins to be valid is such a time, if there is one.
func verify(chain, roots []*x509.Certificate, host string) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("%w: a chain of %d", errCertificate, len(chain))
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
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
	return fmt.Errorf("%w: %w", errCertificate, first)
}
