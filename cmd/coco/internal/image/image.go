// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package image reserves the name for commands on container images, of which there are none yet. The commands on guest
// images once had this name: Command fails and names their new place.
package image

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// moved are the commands that coco guest has now.
var moved = []string{"build", "inspect"}

// Command returns a command that help does not list and that always fails.
func Command() *cobra.Command {
	return &cobra.Command{
		Use:                "image",
		Hidden:             true,
		DisableFlagParsing: true, // the flags are those of another command
		RunE: func(_ *cobra.Command, args []string) error {
			name := "coco guest"
			if len(args) > 0 && slices.Contains(moved, args[0]) {
				name += " " + args[0]
			}
			return fmt.Errorf("coco image has no commands; for guest images run %s", name)
		},
	}
}
