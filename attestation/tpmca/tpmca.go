// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tpmca is the CA of a node's virtual TPMs: it certifies the attestation key of each. A verifier who is given
// the CA's certificate takes the word of these TPMs, and so that of the node.
//
// The certificate is on the attestation key itself. An endorsement key, which the TPMs of manufacturers have certified,
// only decrypts, so that a CA has to talk with each TPM before it knows that an attestation key belongs to it. The node
// runs its TPMs and can ask them directly.
package tpmca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/coco-shim/coco/internal/tpm2"
)

// Files of a CA's directory.
const (
	CertFile = "ca.crt" // for verifiers
	keyFile  = "ca.key" // root's alone
)

const (
	caYears = 10
	akDays  = 90               // longer than a pod lives
	backlog = 10 * time.Minute // clocks that go slow
	maxFile = 64 << 10
)

// oidAIK is the extended key usage of an attestation key (TCG, tcg-kp-AIKCertificate).
var oidAIK = asn1.ObjectIdentifier{2, 23, 133, 8, 3}

// Make makes a CA in a directory, which must not have one, and returns the certificate in PEM. name is for people.
func Make(dir, name string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, OrganizationalUnit: []string{"virtual TPMs, not confidential"}},
		NotBefore:    now.Add(-backlog), NotAfter: now.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The key first, and only if there is none: a CA is never replaced.
	if err := write(filepath.Join(dir, keyFile), 0o600, pemOf("PRIVATE KEY", der)); err != nil {
		return nil, err
	}
	text := pemOf("CERTIFICATE", cert)
	return text, write(filepath.Join(dir, CertFile), 0o644, text)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func write(path string, mode os.FileMode, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
}

// CA certifies attestation keys.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Load reads the CA of a directory.
func Load(dir string) (*CA, error) {
	certDER, err := read(filepath.Join(dir, CertFile), "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	keyDER, err := read(filepath.Join(dir, keyFile), "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	c := &CA{}
	if c.cert, err = x509.ParseCertificate(certDER); err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(c.cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", filepath.Join(dir, keyFile), CertFile)
	}
	c.key = key
	return c, nil
}

func read(path, kind string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s has no %s in PEM", path, kind)
	}
	return block.Bytes, nil
}

// point makes the public key of a point of P-256.
func point(x, y *big.Int) (*ecdsa.PublicKey, error) {
	const size = 32
	if x.Sign() < 0 || y.Sign() < 0 || x.BitLen() > 8*size || y.BitLen() > 8*size {
		return nil, errors.New("its coordinates are no numbers of 32 bytes")
	}
	b := make([]byte, 1+2*size)
	b[0] = 4 // uncompressed: SEC 1, 2.3.3
	x.FillBytes(b[1 : 1+size])
	y.FillBytes(b[1+size:])
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
}

// Certify makes the attestation key of a TPM that was started, certifies it, and leaves the certificate in the TPM.
func (c *CA) Certify(t tpm2.TPM, now time.Time) (err error) {
	if now.After(c.cert.NotAfter) {
		return fmt.Errorf("the CA of the node's TPMs has expired on %s: make a new one",
			c.cert.NotAfter.Format(time.DateOnly))
	}
	ak, err := t.AttestationKey()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Flush(ak)) }()
	public, err := point(ak.X, ak.Y)
	if err != nil {
		return fmt.Errorf("the attestation key is no point of P-256: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	end := now.AddDate(0, 0, akDays)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "virtual TPM of a pod"}, NotBefore: now.Add(-backlog),
		NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidAIK},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, c.cert, public, c.key)
	if err != nil {
		return err
	}
	return t.Store(tpm2.AKCertificate, der)
}
