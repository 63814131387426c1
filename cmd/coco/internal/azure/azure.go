// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package azure has the commands for pods whose keys are in Azure Key Vault. They read files and print; the packages
// below azure decide.
package azure

import (
	"fmt"
	"io"
	"os"

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

// failure is an error with an exit status.
type failure struct {
	text string
	code int
}

// Error returns the sentence.
func (f failure) Error() string { return f.text }

// ExitCode returns the exit status.
func (f failure) ExitCode() int { return f.code }

// input reads a file, or stdin for "-".
func input(cmd *cobra.Command, path string) ([]byte, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxInput)
	}
	return b, nil
}
