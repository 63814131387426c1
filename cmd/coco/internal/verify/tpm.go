// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
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
		if err := o.tpmReferences(&want); err != nil {
			return want, fmt.Errorf("--reference-values %s: %w", o.references, err)
		}
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
	b, err := cli.ReadFile(o.akCA, maxInput)
	if err != nil {
		return want, fmt.Errorf("--ak-ca: %w", err)
	}
	want.Roots = x509.NewCertPool()
	if !want.Roots.AppendCertsFromPEM(b) {
		return want, fmt.Errorf("--ak-ca %s: no certificate in PEM", o.akCA)
	}
	return want, nil
}

// tpmReferences takes the allowed values of PCRs from a file of coco measure vtpm --reference-values. Without
// --pcr-selection the quote must cover all PCRs, as that of our attester and of CoCo's does.
func (o *options) tpmReferences(want *tpm.Expectations) error {
	text, err := cli.ReadFile(o.references, maxInput)
	if err != nil {
		return err
	}
	if want.Registers, err = pcrReferences(text); err != nil {
		return err
	}
	want.Selection = &tpm.Selection{Bank: crypto.SHA256}
	for n := range 24 {
		want.Selection.PCRs = append(want.Selection.PCRs, n)
	}
	return nil
}

// pcrReferences reads both forms of reference values: that of our broker and that of Trustee.
func pcrReferences(text []byte) (map[string][][]byte, error) {
	var doc struct {
		Type    string `json:"type"`
		Payload []byte `json:"payload"`
		Values  []struct {
			Platform  string            `json:"platform"`
			Registers map[string]string `json:"registers"`
		} `json:"values"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	values := map[string][]string{}
	switch doc.Type {
	case "coco-reference-values":
		for _, v := range doc.Values {
			for name, digits := range v.Registers {
				if v.Platform == "vtpm" {
					values[name] = append(values[name], digits)
				}
			}
		}
	case "sample":
		var payload map[string][]string
		if err := json.Unmarshal(doc.Payload, &payload); err != nil {
			return nil, fmt.Errorf("payload: %w", err)
		}
		for name, list := range payload {
			if register, ok := strings.CutPrefix(name, "tpm_"); ok {
				values[register] = list
			}
		}
	default:
		return nil, fmt.Errorf("type %q: known are coco-reference-values and sample", doc.Type)
	}
	if len(values) == 0 {
		return nil, errors.New("no values of PCRs")
	}
	out := map[string][][]byte{}
	for name, list := range values {
		for _, digits := range list {
			b, err := hex.DecodeString(digits)
			if err != nil || len(b) != crypto.SHA256.Size() || !pcrName.MatchString(name) {
				return nil, fmt.Errorf("%s: %q is no value of a PCR of the SHA-256 bank", name, digits)
			}
			out[name] = append(out[name], b)
		}
	}
	return out, nil
}

// pcrName is how PCRs are named in reference values and claims.
var pcrName = regexp.MustCompile(`^pcr([01][0-9]|2[0-3])$`)

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
