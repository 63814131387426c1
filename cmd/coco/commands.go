// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/version"
)

// commands lists the subcommands.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newCacheCmd(),
		newCheckCmd(),
		newImageCmd(),
		newMeasureCmd(),
		newMetricsCmd(),
		newPsCmd(),
		version.Command(),
	}
}
