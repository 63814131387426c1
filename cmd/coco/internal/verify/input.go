// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/eventlog"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/internal/initdata"
)

// inputs are the files that the command reads.
type inputs struct {
	collateral   []string
	fetch        bool
	allowExpired bool
	initdata     string
	references   string
	reportData   string
	eventLog     string
	azureFlags

	service  collateral.Doer  // nil: the network
	verifier *snp.Verifier    // nil: AMD's roots
	tdxRoot  *ecdsa.PublicKey // nil: Intel's root
}

const (
	maxInput     = 1 << 20
	fetchTimeout = 30 * time.Second
	maxListAge   = 24 * time.Hour
)

// read reads the evidence and gets its collateral.
func (in *inputs) read(
	cmd *cobra.Command, path string, at time.Time,
) (ev attestation.Evidence, col attestation.Collateral, err error) {
	b, err := cli.Input(cmd, path, maxInput)
	if err != nil {
		return ev, col, err
	}
	if ev, err = in.parse(b); err != nil {
		return ev, col, err
	}
	if in.eventLog != "" {
		if ev.EventLog, err = cli.ReadFile(in.eventLog, eventlog.MaxSize); err != nil {
			return ev, col, fmt.Errorf("--event-log: %w", err)
		}
	}
	col = attestation.Collateral{Now: at, AllowExpired: in.allowExpired}
	col.Documents, err = in.documents(cmd.Context(), ev)
	return ev, col, err
}

// parse reads evidence of any kind.
func (in *inputs) parse(b []byte) (attestation.Evidence, error) {
	if ev, ok, err := in.readHCL(b); ok {
		return ev, err
	}
	return parse(b)
}

// documents returns the documents of --collateral, and those that the evidence needs beyond them.
func (in *inputs) documents(ctx context.Context, ev attestation.Evidence) ([]attestation.Document, error) {
	store := &collateral.Store{Now: time.Now, MaxAge: func(r attestation.Request) time.Duration {
		if r.Kind != snp.KindVCEK && r.Kind != snp.KindVLEK && r.Kind != snp.KindChain {
			return maxListAge
		}
		return 0
	}}
	if in.fetch {
		if store.Service = in.service; in.service == nil {
			store.Service = collateral.Client(fetchTimeout)
		}
	}
	var docs []attestation.Document
	for _, path := range in.collateral {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("--collateral: %w", err)
		case info.IsDir() && store.Dir != "":
			return nil, fmt.Errorf("--collateral %s: %s is a directory too, and one is kept", path, store.Dir)
		case info.IsDir():
			store.Dir = path
			continue
		}
		b, err := cli.ReadFile(path, maxInput)
		if err != nil {
			return nil, fmt.Errorf("--collateral: %w", err)
		}
		kind, err := kindOf(b)
		if err != nil {
			return nil, fmt.Errorf("--collateral %s: %w", path, err)
		}
		docs = append(docs, attestation.Document{Kind: kind, Name: path, Data: b})
	}
	more, err := requested(ctx, store, ev, docs)
	return append(docs, more...), err
}

// requested gets what the evidence asks for. A kind that a file has given is not asked for. A document that is absent
// is left out: the verifier names what it misses.
func requested(
	ctx context.Context, store *collateral.Store, ev attestation.Evidence, given []attestation.Document,
) ([]attestation.Document, error) {
	requests, err := requestsFor(ev)
	if err != nil {
		return nil, err
	}
	have := map[attestation.Kind]bool{}
	for _, d := range given {
		have[d.Kind] = true
	}
	var docs []attestation.Document
	for _, r := range requests {
		if have[r.Kind] {
			continue
		}
		d, err := store.Get(ctx, r)
		if errors.Is(err, collateral.ErrAbsent) {
			continue
		}
		if err != nil {
			return nil, attestation.Fail(attestation.CodeCollateralMissing, string(r.Kind), "a document of the vendor", "none",
				err)
		}
		docs = append(docs, d)
		have[r.Kind] = r.Kind == snp.KindVCEK // the first line that knows the chip is the right one
	}
	return docs, nil
}

// kindOf tells certificates from lists, and a chip's certificate from its issuers'.
func kindOf(b []byte) (attestation.Kind, error) {
	if k := intelKind(b); k != "" {
		return k, nil
	}
	der := b
	if block, _ := pem.Decode(b); block != nil {
		der = block.Bytes
	}
	if _, err := x509.ParseRevocationList(der); err == nil {
		return snp.KindCRL, nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "", fmt.Errorf("neither a certificate nor a list of revoked ones: %w", err)
	}
	switch c.Subject.CommonName {
	case "SEV-VCEK":
		return snp.KindVCEK, nil
	case "SEV-VLEK":
		return snp.KindVLEK, nil
	}
	return snp.KindChain, nil
}

func (in *inputs) initdataDigest() ([]byte, error) {
	if in.initdata == "" {
		return nil, nil
	}
	text, err := cli.ReadFile(in.initdata, maxInput)
	if err != nil {
		return nil, fmt.Errorf("--initdata: %w", err)
	}
	doc, err := initdata.FromText(text)
	if err != nil {
		return nil, fmt.Errorf("--initdata %s: %w", in.initdata, err)
	}
	return doc.Digest(), nil
}

// measurements returns the launch digests of a file of reference values.
func (in *inputs) measurements() ([][]byte, error) {
	if in.references == "" {
		return nil, nil
	}
	text, err := cli.ReadFile(in.references, maxInput)
	if err != nil {
		return nil, fmt.Errorf("--reference-values: %w", err)
	}
	digests, err := references(text)
	if err != nil {
		return nil, fmt.Errorf("--reference-values %s: %w", in.references, err)
	}
	out := make([][]byte, 0, len(digests))
	for _, d := range digests {
		b, err := hex.DecodeString(d)
		if err != nil || len(b) != 48 {
			return nil, fmt.Errorf("--reference-values %s: %q is no launch digest of SNP", in.references, d)
		}
		out = append(out, b)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--reference-values %s: no launch digest of SNP", in.references)
	}
	return out, nil
}

// references returns the digits of the digests in the forms that coco measure prints: those of our broker and of
// Trustee, and lines of digits.
func references(text []byte) ([]string, error) {
	if !strings.HasPrefix(strings.TrimSpace(string(text)), "{") {
		return strings.Fields(string(text)), nil
	}
	var doc struct {
		Type    string `json:"type"`
		Payload string `json:"payload"`
		Values  []struct {
			Platform    string `json:"platform"`
			Measurement string `json:"measurement"`
		} `json:"values"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	var out []string
	switch doc.Type {
	case "coco-reference-values":
		for _, v := range doc.Values {
			if v.Platform == "snp" {
				out = append(out, v.Measurement)
			}
		}
		return out, nil
	case "sample":
		payload, err := base64.StdEncoding.DecodeString(doc.Payload)
		if err != nil {
			return nil, fmt.Errorf("payload: %w", err)
		}
		var values struct {
			Digests []string `json:"snp_launch_measurement"`
		}
		if err := json.Unmarshal(payload, &values); err != nil {
			return nil, fmt.Errorf("payload: %w", err)
		}
		return values.Digests, nil
	}
	return nil, fmt.Errorf("type %q: known are coco-reference-values and sample", doc.Type)
}
