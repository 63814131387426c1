// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation/tpm"
)

// tpmFlags are expectations that only quotes of a TPM have.
type tpmFlags struct {
	selection string
	pcrs      []string
	akCA      string
	akHashes  []string
	bareKey   bool
}

func (t *tpmFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&t.selection, "pcr-selection", "", "TPM: bank and PCRs that the quote must cover, such as sha256:0,4,8,9")
	f.StringArrayVar(&t.pcrs, "pcr", nil, "TPM: allowed value of a PCR, such as 4=<hex> (repeatable; several for one PCR)")
	f.StringVar(&t.akCA, "ak-ca", "", "TPM: file with CAs whose certificate on the attestation key proves its TPM")
	f.StringArrayVar(&t.akHashes, "ak-hash", nil,
		"TPM: SHA-256 of a trusted attestation key, in DER (SubjectPublicKeyInfo) (repeatable)")
	f.BoolVar(&t.bareKey, "bare-key", false,
		"TPM: accept an attestation key without what the TPM says of it, as CoCo's attester sends it")
}

// tpmExpectations builds what is demanded of a TPM's quote.
func (o *options) tpmExpectations() (tpm.Expectations, error) {
	want := tpm.Expectations{BareKey: o.bareKey, NeedEventLog: o.eventLog != ""}
	var err error
	if want.Expectations, err = o.common(); err != nil {
		return want, err
	}
	if !o.strict {
		want.Undecided = append(want.Undecided, tpm.ItemKey, tpm.ItemSelection)
	}
	if o.references != "" {
		return want, errors.New("--reference-values: a TPM has no launch digest; give --pcr")
	}
	if o.selection != "" {
		if want.Selection, err = parseSelection(o.selection); err != nil {
			return want, err
		}
	}
	for _, text := range o.pcrs {
		number, digits, _ := strings.Cut(text, "=")
		n, err := strconv.Atoi(number)
		value, err2 := hex.DecodeString(digits)
		if err := errors.Join(err, err2); err != nil || n < 0 || n > 23 || len(value) == 0 {
			return want, fmt.Errorf("--pcr %s: a number from 0 to 23, = and hexadecimal digits are needed", text)
		}
		name := fmt.Sprintf("pcr%02d", n)
		if want.Registers == nil {
			want.Registers = map[string][][]byte{}
		}
		want.Registers[name] = append(want.Registers[name], value)
	}
	for _, text := range o.akHashes {
		hash, err := hex.DecodeString(text)
		if err != nil || len(hash) != 32 {
			return want, fmt.Errorf("--ak-hash %s is no SHA-256 in hexadecimal", text)
		}
		want.KeyHashes = append(want.KeyHashes, hash)
	}
	if o.akCA == "" {
		return want, nil
	}
	b, err := readAll(nil, o.akCA, maxInput)
	if err != nil {
		return want, fmt.Errorf("--ak-ca: %w", err)
	}
	want.Roots = x509.NewCertPool()
	if !want.Roots.AppendCertsFromPEM(b) {
		return want, fmt.Errorf("--ak-ca %s: no certificate in PEM", o.akCA)
	}
	return want, nil
}

// parseSelection reads a bank and PCRs as tpm2-tools write them.
func parseSelection(text string) (*tpm.Selection, error) {
	bank, list, _ := strings.Cut(text, ":")
	s := &tpm.Selection{Bank: map[string]crypto.Hash{
		"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512,
	}[bank]}
	for number := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > 23 || s.Bank == 0 {
			return nil, fmt.Errorf("--pcr-selection %s: known are sha256, sha384 and sha512 with PCRs from 0 to 23, "+
				"such as sha256:0,4,8", text)
		}
		s.PCRs = append(s.PCRs, n)
	}
	return s, nil
}
