// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kbs has the commands around the key broker: running one, administering it, and getting a secret from one as a
// guest.
package kbs

import (
	"github.com/spf13/cobra"
)

// Command returns coco kbs.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kbs",
		Short: "Release secrets to guests that prove what they are",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(initCommand(), serveCommand(), getCommand(), auditCommand())
	for _, of := range []func(*connection) *cobra.Command{
		resourceCommand, policyCommand, referenceCommand, checkCommand, whatIfCommand, attestationsCommand, backupCommand,
		pageCommand,
	} {
		c := &connection{}
		below := of(c)
		c.flags(below)
		cmd.AddCommand(below)
	}
	return cmd
}
