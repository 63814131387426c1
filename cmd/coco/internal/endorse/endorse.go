// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package endorse has the command that signs launch digests as a vendor. It reads files and prints; package
// attestation/cose signs.
package endorse

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/cose"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

const maxInput = 1 << 20

// options are the command's flags.
type options struct {
	key, chain, feed, out string
	svn                   uint64
	launches              []string

	now func() time.Time
}

// Command returns coco endorse.
func Command() *cobra.Command { return command(time.Now) }

func command(now func() time.Time) *cobra.Command {
	o := options{now: now}
	cmd := &cobra.Command{
		Use:   "endorse --key KEY --chain CHAIN --feed PRODUCT --svn N --launch FILE --out FILE",
		Short: "Sign launch digests as a version of a guest, so that an update needs no new digests at verifiers",
		Long: "Signs that launch digests are version N of a product (COSE_Sign1). Who verifies pins the issuer, the\n" +
			"product and the lowest version: coco verify --endorsement. Prints the issuer's name (did:x509) as JSON: the\n" +
			"fingerprint of the last certificate of CHAIN, and common name and extended key usage of the first.\n\n" +
			"A new version with a known weakness fixed gets a higher N; verifiers raise --endorsement-min-svn to shut the\n" +
			"old ones out.",
		Example: "  coco measure --config coco.toml --pod pod.yaml --json > launch.json\n" +
			"  coco endorse --key signer.key --chain signer.pem --feed coco-guest-amd64 --svn 3 \\\n" +
			"    --launch launch.json --out guest.cose",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "private key of the signer (PKCS #8, PEM)")
	f.StringVar(&o.chain, "chain", "", "its certificate, then those of the CAs above (PEM)")
	f.StringVar(&o.feed, "feed", "", "the product, such as coco-guest-amd64")
	f.Uint64Var(&o.svn, "svn", 0, "version of the product with regard to its security")
	f.StringArrayVar(&o.launches, "launch", nil, "JSON of coco measure --config … --json (repeatable)")
	f.StringVarP(&o.out, "out", "o", "", "file for the endorsement")
	cli.Require(cmd, "key", "chain", "feed", "svn", "launch", "out")
	return cmd
}

func (o *options) run(cmd *cobra.Command) error {
	key, err := readKey(o.key)
	if err != nil {
		return fmt.Errorf("--key %s: %w", o.key, err)
	}
	chain, err := readChain(o.chain)
	if err != nil {
		return fmt.Errorf("--chain %s: %w", o.chain, err)
	}
	var list []cose.Launch
	for _, path := range o.launches {
		more, err := readLaunches(path)
		if err != nil {
			return fmt.Errorf("--launch %s: %w", path, err)
		}
		list = append(list, more...)
	}
	b, err := cose.Sign(key, chain, o.feed, o.svn, list, o.now())
	if err != nil {
		return fmt.Errorf("endorse: %w", err)
	}
	issuer, err := cose.IssuerOf(chain)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, b, 0o644); err != nil {
		return err
	}
	return show.JSON(cmd.OutOrStdout(), map[string]any{
		"issuer": issuer, "feed": o.feed, "svn": o.svn, "launches": len(list),
	})
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err == nil && len(b) > maxInput {
		err = fmt.Errorf("it has more than %d bytes", maxInput)
	}
	return b, err
}

func readKey(path string) (crypto.Signer, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("no private key (PKCS #8): %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", parsed)
	}
	return key, nil
}

func readChain(path string) ([]*x509.Certificate, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}

// readLaunches reads one launch, a list, or reference values for our broker.
func readLaunches(path string) ([]cose.Launch, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		var list []cose.Launch
		err := json.Unmarshal(b, &list)
		return list, err
	}
	var one struct {
		cose.Launch
		Values []cose.Launch `json:"values"`
	}
	if err := json.Unmarshal(b, &one); err != nil {
		return nil, err
	}
	if one.Values != nil {
		return one.Values, nil
	}
	return []cose.Launch{one.Launch}, nil
}
