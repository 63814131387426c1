// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// seen is an attestation in the broker's answer.
type seen struct {
	Number   uint64          `json:"number"`
	Time     time.Time       `json:"time"`
	TEE      string          `json:"tee"`
	Address  string          `json:"address"`
	Status   string          `json:"status"`
	Reason   string          `json:"reason"`
	InitData string          `json:"init_data"`
	Asked    map[string]bool `json:"asked"`
}

func attestationsCommand(c *connection) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "attestations", Short: "List the last attestations, with the reason of each refusal",
		Long: "Lists the last 1000 attestations since the broker's start, the newest first: what the attestation policy " +
			"found, what\nkept the guest from being affirming, and the secrets that it has asked for.",
		Example: "  coco kbs attestations --cert tls.crt --token-file admin.token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, _, err := c.ask(cmd.Context(), http.MethodGet, "/admin/attestations", nil, nil, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), text)
			}
			return printAttestations(cmd.OutOrStdout(), text)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printAttestations prints attestations as a table.
func printAttestations(w io.Writer, text []byte) error {
	var list []seen
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("the broker's answer: %w", err)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NUMBER\tTIME\tTEE\tADDRESS\tINITDATA\tSTATUS\tSECRETS\tREASON")
	for _, e := range list {
		var asked []string
		for _, name := range slices.Sorted(maps.Keys(e.Asked)) {
			if !e.Asked[name] {
				name += " (denied)"
			}
			asked = append(asked, strings.TrimPrefix(name, "resource/"))
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Number, e.Time.Format(time.RFC3339), e.TEE, e.Address,
			short(e.InitData), e.Status, cmp.Or(strings.Join(asked, ", "), "-"), cmp.Or(e.Reason, "-"))
	}
	return t.Flush()
}

// short is the beginning of a digest.
func short(digest string) string { return cmp.Or(digest[:min(len(digest), 12)], "-") }

// printChanges prints what other rules would change.
func printChanges(w io.Writer, text []byte) error {
	var a struct {
		Looked  int `json:"looked_at"`
		Gaining int `json:"gaining"`
		Losing  int `json:"losing"`
		Changes []struct {
			Number   uint64    `json:"number"`
			Time     time.Time `json:"time"`
			TEE      string    `json:"tee"`
			InitData string    `json:"init_data"`
			Before   string    `json:"before"`
			After    string    `json:"after"`
			Because  string    `json:"because"`
			Gains    []string  `json:"gains"`
			Loses    []string  `json:"loses"`
		} `json:"changes"`
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("the broker's answer: %w", err)
	}
	fmt.Fprintf(w, "%d attestations: %d would gain access, %d would lose it\n", a.Looked, a.Gaining, a.Losing)
	if len(a.Changes) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NUMBER\tTIME\tTEE\tINITDATA\tSTATUS\tGAINS\tLOSES\tBECAUSE")
	for _, c := range a.Changes {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s -> %s\t%s\t%s\t%s\n", c.Number, c.Time.Format(time.RFC3339), c.TEE,
			short(c.InitData), c.Before, c.After, cmp.Or(strings.Join(c.Gains, ", "), "-"),
			cmp.Or(strings.Join(c.Loses, ", "), "-"), cmp.Or(c.Because, "-"))
	}
	return t.Flush()
}
