// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	"github.com/coco-shim/coco/internal/guesttls"
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
	t := guesttls.Transport(tls.VersionTLS13, func(chain []*x509.Certificate, _ string) error {
		if err := guesttls.Verify(chain, roots, host); err != nil {
			return fmt.Errorf("%w: %w", errCertificate, err)
		}
		return nil
	})
	t.TLSClientConfig.ServerName = host
	return t, nil
}
