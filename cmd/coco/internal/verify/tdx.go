// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
)

// tdxFlags are expectations that only TDX has.
type tdxFlags struct {
	tcbStatuses      []string
	refuseAdvisories []string
	minEvaluation    int
}

func (t *tdxFlags) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&t.tcbStatuses, "tcb-status", nil, "TDX: accept this status of Intel beside UpToDate (repeatable)")
	f.StringSliceVar(&t.refuseAdvisories, "refuse-advisory", nil,
		"TDX: refuse platforms to which this advisory applies, such as INTEL-SA-01036 (repeatable)")
	f.IntVar(&t.minEvaluation, "min-evaluation", 0, "TDX: lowest evaluation number of Intel's documents")
}

// isQuote tells a quote of TDX, of version 4 or 5, from other bytes.
func isQuote(b []byte) bool {
	if len(b) < 8 {
		return false
	}
	le := binary.LittleEndian
	version := le.Uint16(b)
	return (version == 4 || version == 5) && le.Uint16(b[2:]) == 2 && le.Uint32(b[4:]) == 0x81
}

// parseTDX reads a quote, as bytes or digits, or CoCo's JSON.
func parseTDX(b []byte) (attestation.Evidence, error) {
	if isJSON(b) {
		return tdx.ParseEvidence(b)
	}
	return attestation.Evidence{Type: attestation.TDX, Report: b}, nil
}

func isJSON(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) }

// tdxExpectations builds what is demanded of a TD.
func (o *options) tdxExpectations() (tdx.Expectations, error) {
	want := tdx.Expectations{
		AllowDebug: o.allowDebug, AllowMigration: o.allowMigration, NeedEventLog: o.eventLog != "", Root: o.tdxRoot,
		TCB: tdx.TCBPolicy{RefuseAdvisories: o.refuseAdvisories, MinEvaluation: o.minEvaluation},
	}
	for _, text := range o.tcbStatuses {
		s := tdx.Status(text)
		if !s.Known() || s == tdx.Revoked {
			return want, fmt.Errorf("--tcb-status %q is no status that can be accepted, such as SWHardeningNeeded", text)
		}
		want.TCB.Statuses = append(want.TCB.Statuses, s)
	}
	var err error
	if want.Expectations, err = o.common(); err != nil || o.references == "" {
		return want, err
	}
	text, err := cli.ReadFile(o.references, maxInput)
	if err != nil {
		return want, fmt.Errorf("--reference-values: %w", err)
	}
	registers, err := tdxReferences(text)
	if err != nil {
		return want, fmt.Errorf("--reference-values %s: %w", o.references, err)
	}
	want.Measurements = registers["mrtd"]
	delete(registers, "mrtd")
	want.Registers = registers
	return want, nil
}

// tdxReferences returns the allowed values of each register, in the forms that coco measure prints: those of our broker
// and of Trustee.
func tdxReferences(text []byte) (map[string][][]byte, error) {
	var doc struct {
		Type    string `json:"type"`
		Payload string `json:"payload"`
		Values  []struct {
			Platform  string            `json:"platform"`
			Registers map[string]string `json:"registers"`
		} `json:"values"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("the registers of a TD need JSON of coco measure --reference-values: %w", err)
	}
	out := map[string][][]byte{}
	add := func(name, digits string) error {
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != 48 || !slices.Contains([]string{"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"}, name) {
			return fmt.Errorf("%s %q is no register of a TD", name, digits)
		}
		out[name] = append(out[name], b)
		return nil
	}
	switch doc.Type {
	case "coco-reference-values":
		for _, v := range doc.Values {
			for name, digits := range v.Registers {
				if err := add(name, digits); v.Platform == "tdx" && err != nil {
					return nil, err
				}
			}
		}
	case "sample":
		if err := sampleReferences(doc.Payload, add); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("type %q: known are coco-reference-values and sample", doc.Type)
	}
	if len(out["mrtd"]) == 0 {
		return nil, errors.New("no MRTD of a TD")
	}
	return out, nil
}

// sampleReferences reads the message for Trustee, which has lists by names such as rtmr_1.
func sampleReferences(payload string, add func(name, digits string) error) error {
	b, err := base64.StdEncoding.DecodeString(payload)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(b, &values); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	for _, name := range []string{"mr_td", "rtmr_0", "rtmr_1", "rtmr_2", "rtmr_3"} {
		if values[name] == nil {
			continue
		}
		var digests []string
		if err := json.Unmarshal(values[name], &digests); err != nil {
			return fmt.Errorf("payload: %s: %w", name, err)
		}
		for _, d := range digests {
			if err := add(strings.ReplaceAll(name, "_", ""), d); err != nil {
				return err
			}
		}
	}
	return nil
}
