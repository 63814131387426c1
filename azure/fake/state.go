// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"time"

	"github.com/coco-shim/coco/azure/release"
)

// quiet drops net/http's messages about connections: tests end them on purpose.
var quiet = log.New(io.Discard, "", 0)

// state is kept in a file, for the next process.
type state struct {
	CAKey  []byte          `json:"ca_key"` // PKCS #8
	CACert []byte          `json:"ca_cert"`
	Signer []byte          `json:"token_key"` // PKCS #8, of the attestation service
	Keys   map[string]*key `json:"keys"`      // by service and name: vault/NAME

	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	signer *rsa.PrivateKey
}

// key is a key of a vault, with one version.
type key struct {
	Version    string            `json:"version"`
	Kind       string            `json:"kty"`
	JWK        map[string]any    `json:"public"`
	Material   []byte            `json:"material"` // PKCS #8, or the bytes of a symmetric key
	Exportable bool              `json:"exportable"`
	Created    int64             `json:"created"`
	Policy     *release.Envelope `json:"policy,omitempty"`
}

const (
	bits = 2048
	life = 10 * 365 * 24 * time.Hour
)

// make makes CA and signing key.
func (s *state) make(now time.Time) error {
	var err error
	if s.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	if s.signer, err = rsa.GenerateKey(rand.Reader, bits); err != nil {
		return err
	}
	if s.CAKey, err = x509.MarshalPKCS8PrivateKey(s.caKey); err != nil {
		return err
	}
	if s.Signer, err = x509.MarshalPKCS8PrivateKey(s.signer); err != nil {
		return err
	}
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "coco azure fake, for tests only"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(life), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if s.CACert, err = certificate(ca, ca, s.caKey.Public(), s.caKey); err != nil {
		return err
	}
	return s.parse()
}

// parse decodes keys and certificate.
func (s *state) parse() (err error) {
	if s.ca, err = x509.ParseCertificate(s.CACert); err != nil {
		return fmt.Errorf("CA of the fake: %w", err)
	}
	ca, errCA := x509.ParsePKCS8PrivateKey(s.CAKey)
	signer, errSigner := x509.ParsePKCS8PrivateKey(s.Signer)
	var okCA, okSigner bool
	s.caKey, okCA = ca.(*ecdsa.PrivateKey)
	s.signer, okSigner = signer.(*rsa.PrivateKey)
	if err := errors.Join(errCA, errSigner); err != nil || !okCA || !okSigner {
		return fmt.Errorf("keys of the fake: they are damaged: %w", err)
	}
	return nil
}

func certificate(c, parent *x509.Certificate, pub crypto.PublicKey, by *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	c.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, c, parent, pub, by)
}

// leaf makes a certificate for a host.
func (s *state) leaf(host string, from, until time.Time, pub crypto.PublicKey) ([]byte, error) {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		c.DNSNames, c.IPAddresses = nil, []net.IP{ip}
	}
	return certificate(c, s.ca, pub, s.caKey)
}

// serverCert makes the certificate of the listeners.
func (s *state) serverCert(host string, now time.Time) (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := s.leaf(host, now.Add(-time.Minute), now.AddDate(1, 0, 0), k.Public())
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
}

func (s *state) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.CACert})
}

// kid names a key by its public half.
func kid(pub *rsa.PublicKey) string {
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(pub))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return fmt.Sprintf("%x", b)
}
