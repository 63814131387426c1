// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/veraison/go-cose"
)

// Launch is a launch digest of ours in an endorsement.
type Launch struct {
	Platform string `json:"platform"` // "snp" or "tdx"
	VCPUs    int    `json:"vcpus"`    // of the VM; measured on SNP
	Digest   string `json:"digest"`   // 96 hexadecimal digits: the launch digest, or MRTD
}

// launches is the payload of our endorsements: one for all shapes of a guest.
type launches struct {
	SVN      *uint64  `json:"svn"`
	Launches []Launch `json:"launches"`
}

// IssuerOf returns the did:x509 of a chain, the signer's certificate first: the fingerprint of the last certificate,
// and the signer's common name and first extended key usage.
func IssuerOf(chain []*x509.Certificate) (string, error) {
	if len(chain) < 2 {
		return "", errors.New("the chain has no certificate above the signer's")
	}
	leaf := chain[0]
	sum := sha256.Sum256(chain[len(chain)-1].Raw)
	out := "did:x509:0:sha256:" + base64.RawURLEncoding.EncodeToString(sum[:])
	if leaf.Subject.CommonName == "" {
		return "", errors.New("the signer's certificate has no common name to pin")
	}
	out += "::subject:CN:" + strings.ReplaceAll(url.QueryEscape(leaf.Subject.CommonName), "+", "%20")
	switch {
	case len(leaf.UnknownExtKeyUsage) > 0:
		out += "::eku:" + leaf.UnknownExtKeyUsage[0].String()
	case len(leaf.ExtKeyUsage) > 0 && ekus[leaf.ExtKeyUsage[0]] != "":
		out += "::eku:" + ekus[leaf.ExtKeyUsage[0]]
	}
	d, err := parseDID(out)
	if err == nil {
		err = d.resolve(chain, leaf.NotBefore)
	}
	return out, err
}

// Sign makes an endorsement of ours.
func Sign(
	key crypto.Signer, chain []*x509.Certificate, feed string, svn uint64, list []Launch, at time.Time,
) ([]byte, error) {
	issuer, err := IssuerOf(chain)
	if err != nil {
		return nil, err
	}
	if pub, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the first certificate is not the key's")
	}
	alg, err := algorithmOf(key)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(launches{&svn, list})
	if err != nil {
		return nil, err
	}
	var ders []any
	for _, c := range chain {
		ders = append(ders, c.Raw)
	}
	h := cose.ProtectedHeader{
		cose.HeaderLabelContentType: "application/json", cose.HeaderLabelX5Chain: ders,
		headerIssuer: issuer, headerFeed: feed, headerTime: at.Unix(),
	}
	h.SetAlgorithm(alg)
	signer, err := cose.NewSigner(alg, key)
	if err != nil {
		return nil, err
	}
	out, err := cose.Sign1(rand.Reader, signer, cose.Headers{Protected: h}, body, nil)
	if err != nil {
		return nil, err
	}
	// An endorsement that no verifier accepts is not returned: an expired certificate, a digest of another length.
	if _, err := Verify(out, Expectations{Issuer: issuer, Feed: feed, MinSVN: &svn}); err != nil {
		return nil, fmt.Errorf("the endorsement does not verify: %w", err)
	}
	return out, nil
}

func algorithmOf(key crypto.Signer) (cose.Algorithm, error) {
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		return cose.AlgorithmPS384, nil
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return cose.AlgorithmES256, nil
		case 384:
			return cose.AlgorithmES384, nil
		case 521:
			return cose.AlgorithmES512, nil
		}
	}
	return 0, errors.New("the key is neither RSA nor on P-256, P-384 or P-521")
}
