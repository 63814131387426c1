// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/policy/rego"
)

// kindOf reads the kind of a policy.
func kindOf(text string) (rego.Kind, error) {
	switch k := rego.Kind(text); k {
	case rego.Attestation, rego.Resource:
		return k, nil
	}
	return "", fmt.Errorf("kind of policy %q: known are attestation and resource", text)
}

func policyCommand(c *connection) *cobra.Command {
	set := &cobra.Command{
		Use: "set KIND FILE", Short: `Replace the "attestation" or "resource" policy`, Args: cobra.ExactArgs(2),
		Long: "Replaces a policy in Rego v1 (package policy). An attestation policy defines trust_claims, a resource " +
			"policy allow.\n" +
			"A policy that does not compile is refused. What is suspicious is printed.",
		Example: "  coco kbs policy set --cert tls.crt --token-file admin.token resource team-a.rego",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			text, err := input(cmd, args[1])
			if err != nil {
				return err
			}
			out, err := c.send(cmd.Context(), http.MethodPost, "/"+string(kind)+"-policy", encodePolicy(text))
			if err != nil {
				return err
			}
			var found struct{ Warnings []string }
			if len(out) > 0 {
				if err := json.Unmarshal(out, &found); err != nil {
					return err
				}
			}
			for _, w := range found.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			return nil
		},
	}
	show := &cobra.Command{
		Use: "show KIND", Short: "Print the policy in force", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			var m struct{ Policy string }
			if err := c.list(cmd.Context(), "/"+string(kind)+"-policy", &m); err != nil {
				return err
			}
			text, err := base64.RawURLEncoding.DecodeString(m.Policy)
			if err == nil {
				_, err = cmd.OutOrStdout().Write(text)
			}
			return err
		},
	}
	return group("policy", "Set, read and try policies", set, show, lintCommand(), testCommand())
}

func lintCommand() *cobra.Command {
	var references string
	cmd := &cobra.Command{
		Use: "lint KIND FILE", Short: "Check a policy without a broker", Args: cobra.ExactArgs(2),
		Long: "Compiles a policy, and with --references compares the reference values that it asks for with a file: a " +
			"JSON map of\n" +
			"names to values. Exit status 4 if anything is found.",
		Example: "  coco kbs policy lint attestation mine.rego --references values.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			text, err := input(cmd, args[1])
			if err != nil {
				return err
			}
			if _, err := rego.Compile(cmd.Context(), kind, string(text)); err != nil {
				return cli.Failure{Err: err, Code: 4}
			}
			if references == "" {
				return nil
			}
			b, err := readFile(references)
			if err != nil {
				return err
			}
			var values map[string]any
			if err := json.Unmarshal(b, &values); err != nil {
				return fmt.Errorf("--references %s: %w", references, err)
			}
			found, err := rego.Lint(kind, string(text), valuesOf(values))
			if err != nil {
				return err
			}
			if len(found) > 0 {
				return cli.Failure{Err: errors.New(strings.Join(found, "\n")), Code: 4}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&references, "references", "", "JSON map of reference values")
	return cmd
}

// valuesOf are reference values of a map.
func valuesOf(values map[string]any) rego.References {
	return func(name string) (any, bool) { v, ok := values[name]; return v, ok }
}

// policyCase is a case of coco kbs policy test.
type policyCase struct {
	Name       string         `json:"name"`
	Input      map[string]any `json:"input"`
	Data       map[string]any `json:"data"`
	References map[string]any `json:"references"`
	// Allow is what a resource policy must say, Vector what an attestation policy must say; null: nothing.
	Allow  *bool          `json:"allow"`
	Vector map[string]int `json:"vector"`
}

func testCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test KIND FILE CASES", Short: "Run cases against a policy", Args: cobra.ExactArgs(3),
		Long: "Evaluates a policy for each case of a JSON list, and prints those that come out otherwise. A case has a " +
			"name, the\n" +
			"input (claims of evidence, or of a token), for resource policies data (plugin, resource-path, query) and allow\n" +
			"(true or false), for attestation policies references and vector. A case without vector must have no result.\n" +
			"Exit status 4 if a case fails.",
		Example: "  coco kbs policy test resource team-a.rego cases.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			text, err := input(cmd, args[1])
			if err != nil {
				return err
			}
			b, err := readFile(args[2])
			if err != nil {
				return err
			}
			var cases []policyCase
			if err := json.Unmarshal(b, &cases); err != nil || len(cases) == 0 {
				return fmt.Errorf("%s is no list of cases: %w", args[2], err)
			}
			p, err := rego.Compile(cmd.Context(), kind, string(text))
			if err != nil {
				return cli.Failure{Err: err, Code: 4}
			}
			failed := 0
			for _, tc := range cases {
				if got := tc.run(cmd, p, kind); got != "" {
					fmt.Fprintf(cmd.OutOrStdout(), "FAIL %s: %s\n", tc.Name, got)
					failed++
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d of %d cases pass\n", len(cases)-failed, len(cases))
			if failed > 0 {
				return cli.Failure{Err: fmt.Errorf("%d cases fail", failed), Code: 4}
			}
			return nil
		},
	}
}

// run evaluates a case. It returns what is wrong.
func (tc policyCase) run(cmd *cobra.Command, p *rego.Policy, kind rego.Kind) string {
	if kind == rego.Resource {
		if tc.Allow == nil {
			return "the case does not say allow"
		}
		got, err := p.Allow(cmd.Context(), tc.Input, tc.Data)
		if got != *tc.Allow {
			return fmt.Sprintf("allow is %t, want %t (%v)", got, *tc.Allow, err)
		}
		return ""
	}
	a, err := p.Appraise(cmd.Context(), tc.Input, valuesOf(tc.References))
	if err != nil {
		a.Vector = nil
	}
	if !maps.Equal(a.Vector, tc.Vector) {
		return fmt.Sprintf("the vector is %s, want %s (%v)", vectorText(a.Vector), vectorText(tc.Vector), err)
	}
	return ""
}

func vectorText(v map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, v[name]))
	}
	return "[" + strings.Join(parts, " ") + "]"
}
