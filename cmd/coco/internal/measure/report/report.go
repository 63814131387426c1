// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report prints the results of coco measure: digests, JSON, explanations and reference values. It computes none
// of them.
package report

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/measurement"
)

// Form says in which form results are printed.
type Form struct {
	JSON, Explain bool
	References    string // "rvps" or "broker": reference values instead
}

// Flags adds the flags that choose the form.
func (o *Form) Flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.JSON, "json", false, "print JSON")
	f.BoolVar(&o.Explain, "explain", false, "explain every step: on stderr, or in the JSON")
	f.StringVar(&o.References, "reference-values", "", "print reference values instead: rvps (Trustee) or broker (ours)")
}

// Check refuses forms that are unknown or exclude each other.
func (o *Form) Check() error {
	switch o.References {
	case "", "rvps", "broker":
	default:
		return fmt.Errorf("--reference-values %q: known forms are rvps and broker", o.References)
	}
	if o.References != "" && (o.JSON || o.Explain) {
		return errors.New("--reference-values goes without --json and --explain")
	}
	return nil
}

// Result holds the digests of one VM. Each platform has a type that implements it.
type Result interface {
	Lines() []string               // for stdout: digests in hexadecimal
	References() map[string]string // digests by the names of Trustee's default policy
	Steps() *measurement.Trace     // nil if none was asked for
}

// Print prints results: digests or JSON on stdout, explanations beside digests on stderr.
func (o *Form) Print(cmd *cobra.Command, results []Result) error {
	w := cmd.OutOrStdout()
	var out bytes.Buffer
	switch {
	case o.References == "rvps":
		if err := rvps(&out, results); err != nil {
			return err
		}
	case o.References == "broker":
		doc := map[string]any{"type": "coco-reference-values", "version": 1, "values": results}
		if err := show.JSON(&out, doc); err != nil {
			return err
		}
	case o.JSON:
		var v any = results
		if len(results) == 1 {
			v = results[0]
		}
		if err := show.JSON(&out, v); err != nil {
			return err
		}
	default:
		for _, r := range results {
			for _, l := range r.Lines() {
				fmt.Fprintln(&out, l)
			}
			if t := r.Steps(); t != nil {
				explain(cmd.ErrOrStderr(), t)
			}
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

// explain prints a trace, runs of pages of one kind as one line.
func explain(w io.Writer, t *measurement.Trace) {
	for _, s := range t.Steps {
		fmt.Fprintln(w, s)
	}
}

// rvps writes the message that Trustee's reference value provider registers: the sample extractor's
// payload, a map from the names of the default policy to lists of values.
func rvps(w io.Writer, results []Result) error {
	values := map[string][]string{}
	for _, r := range results {
		for name, v := range r.References() {
			values[name] = append(values[name], v)
		}
	}
	payload, err := json.Marshal(values)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(struct {
		Version string `json:"version"`
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}{"0.1.0", "sample", base64.StdEncoding.EncodeToString(payload)})
}
