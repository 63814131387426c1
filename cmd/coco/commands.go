// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/cobra"

// commands lists the subcommands; each lives in a file of its name.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newCacheCmd(),
		newCheckCmd(),
		newImageCmd(),
		newMeasureCmd(),
		newMetricsCmd(),
		newPsCmd(),
		newVersionCmd(),
	}
}
