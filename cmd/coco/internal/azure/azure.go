// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package azure has the commands for pods whose keys are in Azure Key Vault. They read files and print; the packages
// below azure decide.
package azure

import (
	"github.com/spf13/cobra"
)

// maxInput bounds each file that is read.
const maxInput = 1 << 20

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "azure",
		Short: "Keys in Azure Key Vault: release policies, release, fakes of the services",
		Long:  "Commands for pods whose keys are released by Azure Key Vault or Managed HSM. See docs/azure.md.",
	}
	cmd.AddCommand(policyCommand(), getCommand(), fakeCommand())
	return cmd
}
