// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kbs has the commands around the key broker: getting a secret from one as a guest.
package kbs

import (
	"github.com/spf13/cobra"
)

// Command returns coco kbs.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kbs",
		Short: "Get secrets from a key broker",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(getCommand())
	return cmd
}
