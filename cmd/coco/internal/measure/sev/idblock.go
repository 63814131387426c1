// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sev

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// idOptions say which ID block to make.
type idOptions struct {
	on, allowDebug bool
	key, author    string
	policy         string
	family, image  string
	svn            uint32
}

func (o *idOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.on, "id-block", false,
		"also print an ID block and ID authentication, for QEMU's id-block= and id-auth=")
	f.StringVar(&o.key, "id-key", "",
		"PEM file with the P-384 key that signs the ID block; without it the block is anonymous")
	f.StringVar(&o.author, "author-key", "", "PEM file with the P-384 key that signs the ID key")
	f.StringVar(&o.policy, "policy", fmt.Sprintf("%#x", uint64(idblock.DefaultPolicy)), "guest policy of the launch")
	f.StringVar(&o.family, "family-id", "", "16 bytes in hexadecimal, free for the owner")
	f.StringVar(&o.image, "image-id", "", "16 bytes in hexadecimal, free for the owner")
	f.Uint32Var(&o.svn, "guest-svn", 0, "security version of the guest")
	f.BoolVar(&o.allowDebug, "allow-debug", false, "accept a policy that lets the host debug the guest")
}

// make returns the ID block for a digest, nil if none was asked for.
func (o *idOptions) make(d measurement.Digest) (*idResult, error) {
	if !o.on {
		if o.key != "" || o.author != "" {
			return nil, errors.New("--id-key and --author-key want --id-block")
		}
		return nil, nil
	}
	block, err := o.block(d)
	if err != nil {
		return nil, err
	}
	if o.key == "" {
		if o.author != "" {
			return nil, errors.New("--author-key wants --id-key")
		}
		auth, err := idblock.Anonymous(block)
		if err != nil {
			return nil, err
		}
		return newIDResult(block, auth, true)
	}
	key, err := readKey(o.key)
	if err != nil {
		return nil, err
	}
	var author *ecdsa.PrivateKey
	if o.author != "" {
		if author, err = readKey(o.author); err != nil {
			return nil, err
		}
	}
	auth, err := idauth.Sign(block, key, author)
	if err != nil {
		return nil, err
	}
	return newIDResult(block, auth, false)
}

func (o *idOptions) block(d measurement.Digest) (idblock.Block, error) {
	p, err := strconv.ParseUint(o.policy, 0, 64)
	if err != nil {
		return idblock.Block{}, fmt.Errorf("--policy %q is not a 64-bit number", o.policy)
	}
	policy := idblock.Policy(p)
	if err := policy.CheckProduction(); err != nil && !(o.allowDebug && errors.Is(err, idblock.ErrDebug)) {
		return idblock.Block{}, fmt.Errorf("--policy: %w", err)
	}
	b, err := idblock.New(d, policy)
	if err != nil {
		return b, err
	}
	b.GuestSVN = o.svn
	for _, f := range []struct {
		flag, value string
		dst         *[16]byte
	}{{"--family-id", o.family, &b.FamilyID}, {"--image-id", o.image, &b.ImageID}} {
		raw, err := hex.DecodeString(f.value)
		if err != nil || len(raw) != 0 && len(raw) != 16 {
			return b, fmt.Errorf("%s %q is not 16 bytes in hexadecimal", f.flag, f.value)
		}
		copy(f.dst[:], raw)
	}
	return b, nil
}

// readKey reads an EC private key in either of its PEM forms.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	raw, err := input.ReadLimited(path, 64<<10)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "EC PRIVATE KEY":
			k, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return k, nil
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if ec, ok := k.(*ecdsa.PrivateKey); ok {
				return ec, nil
			}
			return nil, fmt.Errorf("%s: not an elliptic-curve key", path)
		}
	}
	return nil, fmt.Errorf("%s: has no EC private key in PEM form", path)
}
