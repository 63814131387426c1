// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package evidence has the command that makes evidence of the machine that it runs on.
package evidence

import (
	"encoding/hex"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/guest"
)

// maxData is the longest report data that is taken; a quote holds less.
const (
	maxData      = 48
	maxQuoteData = 32
)

// Command returns coco evidence.
func Command() *cobra.Command {
	var tee string
	cmd := &cobra.Command{
		Use:   "evidence REPORT-DATA",
		Short: "Make evidence of this machine, in a guest",
		Long: "Prints evidence of the machine in CoCo's JSON, with bytes of the verifier's in it, in hexadecimal: up to\n" +
			"48, or 32 for type tpm. Types snp and tdx come from the kernel (configfs-tsm, Linux 6.7 or later). Type tpm\n" +
			"is a quote of all PCRs of the SHA-256 bank, by a key that is made in the TPM and that the CA of the node\n" +
			"has certified (coco node tpm-ca). It proves what was booted to whoever trusts the node that runs the TPM.\n" +
			"There is no fall-back from one type to another.",
		Example: "  coco evidence --tee tpm 00112233 >evidence.json     # in the guest\n" +
			"  coco verify evidence.json --report-data 00112233 --ak-ca ca.crt --reference-values rv.json",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			most := maxData
			if tee == "tpm" {
				most = maxQuoteData
			}
			data, err := hex.DecodeString(args[0])
			if err != nil || len(data) == 0 || len(data) > most {
				return fmt.Errorf("evidence: %.100q is not 1 to %d bytes in hexadecimal", args[0], most)
			}
			a, err := guest.New("/", tee)
			if err != nil {
				return err
			}
			text, err := a.Evidence(cmd.Context(), data)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
			return err
		},
	}
	cmd.Flags().StringVar(&tee, "tee", "tpm", "type of the evidence: snp, tdx, tpm")
	return cmd
}
