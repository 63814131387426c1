// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package version has the command that prints the program's version.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	stamp "github.com/coco-shim/coco/internal/version"
)

// Info is what the command prints with --json.
type Info struct {
	Version  string `json:"version"`
	Go       string `json:"go"`       // the compiler's version
	Platform string `json:"platform"` // operating system and architecture, as Go names them
}

// Get returns the version of this program: the one that make stamped into it, else the one that the go command
// recorded, as go install and go build do it, else "dev".
func Get() Info {
	v := stamp.Version
	if b, ok := debug.ReadBuildInfo(); ok {
		v = choose(v, b.Main.Version)
	}
	return Info{Version: v, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}

// choose prefers the stamped version. The go command records "(devel)", or nothing, when it knows no version.
func choose(stamped, recorded string) string {
	if stamped != stamp.Unstamped || recorded == "" || recorded == "(devel)" {
		return stamped
	}
	return recorded
}

// Command returns the command.
func Command() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info := Get()
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), info)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "coco %s\n", info.Version)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
