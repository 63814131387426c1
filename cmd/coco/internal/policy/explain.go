// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/policy/gen/manifest"
	"github.com/coco-shim/coco/policy/katarego"
	"github.com/coco-shim/coco/policy/lint"
	"github.com/coco-shim/coco/policy/simulate"
)

func explainCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "explain [TEXT...]",
		Short:   "Say what a denial means and which change of the policy would allow the request",
		Long:    "Finds the denial in the text, such as an event of Kubernetes or a line of a log; without a text, in stdin.",
		Example: "  kubectl describe pod web-0 | coco policy explain",
		RunE: func(cmd *cobra.Command, args []string) error {
			text := strings.Join(args, " ")
			if len(args) == 0 {
				b, err := cli.Input(cmd, "-", manifest.MaxText)
				if err != nil {
					return err
				}
				text = string(b)
			}
			e, err := lint.Explain(text)
			if err != nil {
				return fmt.Errorf("policy explain: %w", err)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return show.JSON(out, e)
			}
			for _, l := range [][2]string{
				{"code", string(e.Code) + ": " + e.Meaning},
				{"container", e.Container},
				{"field", e.Field},
				{"expected", e.Expected},
				{"got", e.Got},
				{"allow with", e.Fix},
				{"advice", e.Advice},
			} {
				if l[1] != "" {
					fmt.Fprintf(out, "%-11s%s\n", l[0], l[1])
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// replay asks a policy about a log, in the language that the policy is written in.
func replay(cmd *cobra.Command, name string, log []byte) ([]simulate.Verdict, error) {
	if filepath.Ext(name) != ".rego" {
		p, err := readPolicy(cmd, name)
		if err != nil {
			return nil, err
		}
		return simulate.Run(p, bytes.NewReader(log))
	}
	text, err := cli.Input(cmd, name, manifest.MaxText)
	if err != nil {
		return nil, err
	}
	p, err := katarego.Compile(cmd.Context(), string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return simulate.Each(bytes.NewReader(log), func(kind string, request json.RawMessage) (string, error) {
		return p.Replay(cmd.Context(), kind, request)
	})
}

func simulateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "simulate POLICY LOG",
		Short: "Ask a policy about the requests of a log; fail if it denies one",
		Long: "Each line of the log is a JSON object {\"kind\": \"CreateContainer\", \"request\": {…}} with a request of\n" +
			"the agent's protocol in its JSON form. They are asked in order, as the agent would be; a line of kind Exited\n" +
			"with {\"container_id\", \"exit_code\"} tells of a container's end. LOG may be -, stdin.\n\n" +
			"A POLICY whose name ends in .rego is one of Kata's agent. Its log is the agent's /tmp/policy.jsonl, or the\n" +
			"testcases of genpolicy, one a line.",
		Example: "  coco policy simulate policy.coco requests.jsonl\n  coco policy simulate policy.rego policy.jsonl",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := cli.Input(cmd, args[1], manifest.MaxText)
			if err != nil {
				return fmt.Errorf("policy simulate: %w", err)
			}
			list, err := replay(cmd, args[0], log)
			if err != nil {
				return fmt.Errorf("policy simulate: %w", err)
			}
			denials := 0
			for _, v := range list {
				verdict := "allowed"
				if v.Denial != "" {
					denials++
					verdict = v.Denial
				}
				if !asJSON {
					fmt.Fprintf(cmd.OutOrStdout(), "%d %s: %s\n", v.Line, v.Kind, verdict)
				}
			}
			if asJSON {
				if err := show.JSON(cmd.OutOrStdout(), map[string]any{"verdicts": list}); err != nil {
					return err
				}
			}
			if denials > 0 {
				return fmt.Errorf("policy simulate: %d of %d requests are denied", denials, len(list))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
