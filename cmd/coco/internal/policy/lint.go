// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/policy/lint"
)

func lintCommand() *cobra.Command {
	var asJSON, strict bool
	cmd := &cobra.Command{
		Use:   "lint FILE",
		Short: "List the things about a policy that leave the host a choice",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := readPolicies(cmd, args[0])
			if err != nil {
				return fmt.Errorf("policy lint: %w", err)
			}
			type found struct {
				Workload string `json:"workload,omitempty"`
				lint.Finding
			}
			all := []found{}
			warnings := 0
			for _, n := range list {
				for _, f := range lint.Policy(n.policy) {
					all = append(all, found{n.name, f})
					if f.Warning {
						warnings++
					}
				}
			}
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), map[string]any{"findings": all})
			} else {
				for _, f := range all {
					if f.Workload != "" {
						f.Workload += ": "
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s%s\n", f.Workload, f.Finding)
				}
			}
			if strict && warnings > 0 && err == nil {
				err = fmt.Errorf("policy lint: %d warnings", warnings)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail if there is a warning")
	return cmd
}

// errDiffers is the outcome of a comparison, for exit codes.
var errDiffers = errors.New("the policies differ")

func diffCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show the members in which two policies differ; fail if they do",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := readPolicy(cmd, args[0])
			if err != nil {
				return fmt.Errorf("policy diff: %w", err)
			}
			b, err := readPolicy(cmd, args[1])
			if err != nil {
				return fmt.Errorf("policy diff: %w", err)
			}
			changes, err := lint.Diff(a, b)
			if err != nil {
				return err
			}
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), map[string]any{"changes": changes})
			} else {
				for _, c := range changes {
					fmt.Fprintln(cmd.OutOrStdout(), c)
				}
			}
			if err == nil && len(changes) > 0 {
				err = errDiffers
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
