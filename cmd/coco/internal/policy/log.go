// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/pods"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/policy/decisions"
)

func logCommand() *cobra.Command {
	var config string
	var denied, asJSON bool
	cmd := &cobra.Command{
		Use:   "log POD",
		Short: "Print what the policy of a running pod has decided lately",
		Long: "Asks the guest, through the pod's shim on this node, for its last decisions: the call, the ids of\n" +
			"container and exec, and \"allowed\" or the denial. The policy has to open them (coco policy gen\n" +
			"--allow stats). POD is as in coco inspect.",
		Example: "  sudo coco policy log default/web --denied",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := pods.Decisions(cmd.Context(), config, args[0])
			if err != nil {
				return fmt.Errorf("policy log: %w", err)
			}
			if denied {
				list = slices.DeleteFunc(list, func(d decisions.Decision) bool { return d.Denied == "" })
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), map[string]any{"decisions": list})
			}
			for _, d := range list {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	f.BoolVar(&denied, "denied", false, "denials only")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
