// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cose

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // fingerprints
	_ "crypto/sha512" // fingerprints
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// did is a did:x509: the fingerprint of a CA certificate, and demands on the signer's certificate.
// Microsoft, "did:x509 Method Specification".
type did struct {
	hash        crypto.Hash
	fingerprint []byte
	policies    []policy
}

// policy is a demand on the signer's certificate.
type policy struct {
	kind   string // subject, eku or san
	values []string
}

var hashes = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

const maxDID = 2048

// parseDID reads did:x509:0:ALGORITHM:FINGERPRINT::POLICY::POLICY…. A kind of policy that is not known is refused: what
// it demands could not be checked.
func parseDID(text string) (d did, err error) {
	if len(text) > maxDID {
		return d, fmt.Errorf("it has more than %d characters", maxDID)
	}
	parts := strings.Split(text, "::")
	head := strings.Split(parts[0], ":")
	if len(head) != 5 || head[0] != "did" || head[1] != "x509" || head[2] != "0" {
		return d, errors.New("it does not begin with did:x509:0:ALGORITHM:FINGERPRINT")
	}
	if d.hash = hashes[head[3]]; d.hash == 0 {
		return d, fmt.Errorf("fingerprints of %.20q are not known", head[3])
	}
	d.fingerprint, err = base64.RawURLEncoding.Strict().DecodeString(head[4])
	if err != nil || len(d.fingerprint) != d.hash.Size() {
		return d, fmt.Errorf("the fingerprint is not one of %s", head[3])
	}
	if len(parts) < 2 {
		return d, errors.New("it demands nothing of the signer's certificate")
	}
	for _, p := range parts[1:] {
		fields := strings.Split(p, ":")
		one := policy{kind: fields[0]}
		for _, f := range fields[1:] {
			v, err := url.PathUnescape(f)
			if err != nil || v == "" {
				return d, fmt.Errorf("policy %.100q: a value is empty or badly escaped", p)
			}
			one.values = append(one.values, v)
		}
		n := len(one.values)
		switch {
		case one.kind == "subject" && n >= 2 && n%2 == 0, one.kind == "eku" && n == 1, one.kind == "san" && n == 2:
		default:
			return d, fmt.Errorf("policy %.100q is not known, or lacks values", p)
		}
		d.policies = append(d.policies, one)
	}
	return d, nil
}

// resolve checks a chain, the signer's certificate first, at a time: it leads to the certificate with the fingerprint,
// which stands above the signer's, and the signer's has what the policies demand.
func (d did) resolve(chain []*x509.Certificate, at time.Time) error {
	if len(chain) < 2 {
		return errors.New("it has no certificate above the signer's")
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	found := false
	for _, c := range chain[1:] {
		h := d.hash.New()
		h.Write(c.Raw)
		if bytes.Equal(h.Sum(nil), d.fingerprint) {
			opts.Roots.AddCert(c)
			found = true
			break // certificates above it are not needed
		}
		opts.Intermediates.AddCert(c)
	}
	if !found {
		return errors.New("no certificate above the signer's has the issuer's fingerprint")
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return err
	}
	for _, p := range d.policies {
		if !p.holds(chain[0]) {
			return fmt.Errorf("the signer's certificate lacks %s %q", p.kind, strings.Join(p.values, ":"))
		}
	}
	return nil
}

func (p policy) holds(c *x509.Certificate) bool {
	switch p.kind {
	case "eku":
		for _, oid := range c.UnknownExtKeyUsage {
			if oid.String() == p.values[0] {
				return true
			}
		}
		for _, known := range c.ExtKeyUsage {
			if ekus[known] == p.values[0] {
				return true
			}
		}
		return false
	case "san":
		return p.san(c)
	}
	for i := 0; i+1 < len(p.values); i += 2 {
		if !subjectHas(c, p.values[i], p.values[i+1]) {
			return false
		}
	}
	return true
}

// ekus are the usages that package x509 gives a name: RFC 5280, section 4.2.1.12.
var ekus = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageServerAuth: "1.3.6.1.5.5.7.3.1", x509.ExtKeyUsageClientAuth: "1.3.6.1.5.5.7.3.2",
	x509.ExtKeyUsageCodeSigning: "1.3.6.1.5.5.7.3.3", x509.ExtKeyUsageEmailProtection: "1.3.6.1.5.5.7.3.4",
	x509.ExtKeyUsageTimeStamping: "1.3.6.1.5.5.7.3.8",
}

func (p policy) san(c *x509.Certificate) bool {
	var names []string
	switch p.values[0] {
	case "dns":
		names = c.DNSNames
	case "email":
		names = c.EmailAddresses
	case "uri":
		for _, u := range c.URIs {
			names = append(names, u.String())
		}
	}
	for _, n := range names {
		if n == p.values[1] {
			return true
		}
	}
	return false
}

// attributes are the names of subjects: RFC 4514, section 3, and the specification's.
var attributes = map[string]string{
	"CN": "2.5.4.3", "L": "2.5.4.7", "ST": "2.5.4.8", "O": "2.5.4.10", "OU": "2.5.4.11", "C": "2.5.4.6",
	"STREET": "2.5.4.9",
}

func subjectHas(c *x509.Certificate, name, want string) bool {
	oid, ok := attributes[name]
	if !ok {
		oid = name
	}
	for _, a := range c.Subject.Names {
		if v, ok := a.Value.(string); ok && a.Type.String() == oid && v == want {
			return true
		}
	}
	return false
}
