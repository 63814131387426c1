// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package signed is the form in which the owner of a pod signs the files of a volume, for content with the rule
// "signed" in a policy. The signature is a file among the others, FileName, of lines:
//
//	coco content v1
//	for NAME
//	counter NUMBER
//	SHA-256 PATH
//	…
//	signature BASE64
//
// NAME is the volume's name in the policy, or the destination of a container's mount. The lines of the files are in the
// order of their paths; a path is relative, in its shortest form. The signature is over all lines before its own: for a
// P-256 key ECDSA with SHA-256 in ASN.1, for an Ed25519 key Ed25519. There is one form of each statement, so that two
// readers never understand one differently.
package signed

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// FileName is the file with the signature. It is sent before all others of its directory, which begin with a letter,
// digit or underscore.
const FileName = ".coco.sig"

// MaxSize bounds a signature's file.
const MaxSize = 64 << 10

const (
	title  = "coco content v1"
	prefix = "signature "
)

// Statement says which files a volume has.
type Statement struct {
	Name    string // of the volume, or the destination of the mount
	Counter uint64
	Files   map[string]string // SHA-256 in hexadecimal digits, by path
}

// encode returns the lines that are signed.
func (s Statement) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nfor %s\ncounter %d\n", title, s.Name, s.Counter)
	paths := make([]string, 0, len(s.Files))
	for p := range s.Files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		fmt.Fprintf(&b, "%s %s\n", s.Files[p], p)
	}
	return b.Bytes()
}

// Sign returns the content of FileName.
func (s Statement) Sign(key crypto.Signer) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	text := s.encode()
	var sig []byte
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("the key is on curve %s, not P-256", k.Curve.Params().Name)
		}
		sum := sha256.Sum256(text)
		sig, err = ecdsa.SignASN1(rand.Reader, k, sum[:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, text)
	default:
		return nil, fmt.Errorf("a key of type %T signs nothing here: want P-256 or Ed25519", key)
	}
	if err != nil {
		return nil, err
	}
	text = fmt.Appendf(text, "%s%s\n", prefix, base64.StdEncoding.EncodeToString(sig))
	if len(text) > MaxSize {
		return nil, fmt.Errorf("the signature's file would have %d bytes, more than %d", len(text), MaxSize)
	}
	return text, nil
}

func (s Statement) check() error {
	if s.Name == "" || strings.ContainsAny(s.Name, "\n\r\x00") {
		return fmt.Errorf("the name %.80q is empty or more than a line", s.Name)
	}
	for p, sum := range s.Files {
		if p != path.Clean(p) || path.IsAbs(p) || p == "." || strings.HasPrefix(p, "..") || p == FileName ||
			strings.ContainsAny(p, "\n\r\x00") {
			return fmt.Errorf("the path %.80q is not one below the volume", p)
		}
		if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size || strings.ToLower(sum) != sum {
			return fmt.Errorf("the digest of %.80q is not 64 lower-case hexadecimal digits", p)
		}
	}
	return nil
}

// Verify reads the content of FileName and checks its signature. keys are as in policy.Content.
func Verify(text []byte, keys []string) (Statement, error) {
	i := bytes.LastIndex(text, []byte("\n"+prefix))
	if len(text) > MaxSize || i < 0 {
		return Statement{}, fmt.Errorf("it is longer than %d bytes or has no line %q", MaxSize, strings.TrimSpace(prefix))
	}
	body, line := text[:i+1], strings.TrimPrefix(string(text[i+1:]), prefix)
	sig, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(line, "\n"))
	if err != nil {
		return Statement{}, fmt.Errorf("its signature: %w", err)
	}
	if !slices.ContainsFunc(keys, func(k string) bool { return verified(k, body, sig) }) {
		return Statement{}, errors.New("it is signed by none of the policy's keys")
	}
	return parse(body)
}

// parse reads lines that were signed.
func parse(body []byte) (Statement, error) {
	s := Statement{Files: map[string]string{}}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) < 3 || lines[0] != title {
		return s, fmt.Errorf("it does not begin with %q", title)
	}
	counter := strings.TrimPrefix(lines[2], "counter ")
	var err error
	if s.Counter, err = strconv.ParseUint(counter, 10, 64); err != nil {
		return s, fmt.Errorf("its counter is %.40q", counter)
	}
	s.Name = strings.TrimPrefix(lines[1], "for ")
	for _, l := range lines[3:] {
		sum, p, _ := strings.Cut(l, " ")
		s.Files[p] = sum
	}
	if err := s.check(); err != nil {
		return s, err
	}
	if !bytes.Equal(s.encode(), body) {
		return s, errors.New("it is not in the one form that it may have")
	}
	return s, nil
}

// DER of SubjectPublicKeyInfo before the key itself: RFC 8410 and RFC 5480, section 2.
var (
	spkiEd25519 = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}
	spkiP256    = []byte{
		0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
		0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
	}
)

// verified says whether a signature is one of a key.
func verified(key string, text, sig []byte) bool {
	der, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return false
	}
	if raw, ok := bytes.CutPrefix(der, spkiEd25519); ok {
		return len(raw) == ed25519.PublicKeySize && ed25519.Verify(raw, text, sig)
	}
	raw, ok := bytes.CutPrefix(der, spkiP256)
	if !ok {
		return false
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		return false
	}
	sum := sha256.Sum256(text)
	return ecdsa.VerifyASN1(pub, sum[:], sig)
}
