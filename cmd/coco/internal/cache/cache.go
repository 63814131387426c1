// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cache has the commands that list and prune the layers that a node has converted.
package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/image/layer"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{Use: "cache", Short: "List and prune the image layers that this node has converted"}
	cmd.AddCommand(listCommand(), pruneCommand())
	return cmd
}

// openCache opens the cache that the configuration names. One that is not there is not made.
func openCache(config string) (*layer.Cache, configs.Config, error) {
	cfg, err := configs.Load(config)
	if err != nil {
		return nil, cfg, err
	}
	if _, err := os.Stat(cfg.Runtime.LayerCache); err != nil {
		return nil, cfg, fmt.Errorf("layer cache: %w", err)
	}
	c, err := layer.New(cfg.Runtime.LayerCache)
	return c, cfg, err
}

func listCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the layers, the one that was used longest ago first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := openCache(config)
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			return showLayers(cmd.OutOrStdout(), list, asJSON, "in the cache")
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file (default: the one that the shim takes)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func pruneCommand() *cobra.Command {
	var config string
	var asJSON, dry, all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove layers whose snapshots are gone, and what is over the bound",
		Long: "Removes the layers whose snapshots are gone, and then of the others those that were used longest ago,\n" +
			"until the cache is within runtime.layer_cache_size_mib. Layers that a VM uses stay. It may run beside\n" +
			"shims: one that wants a layer again builds it again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, cfg, err := openCache(config)
			if err != nil {
				return err
			}
			most := c.Bound(cfg.Runtime.LayerCacheSizeMiB)
			if all {
				most = 0
			}
			gone := []layer.Entry{}
			err = c.Trim(cmd.Context(), most, dry, func(e layer.Entry) {
				gone = append(gone, e)
				did := "removed"
				if dry {
					did = "would remove"
				}
				cmd.PrintErrf("%s %s, %s\n", did, e.RootHash[:12], mebibytes(e.Size))
			})
			what := "removed"
			if dry {
				what = "would be removed"
			}
			return errors.Join(showLayers(cmd.OutOrStdout(), gone, asJSON, what), err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file (default: the one that the shim takes)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&dry, "dry-run", false, "say what would be removed, and remove nothing")
	f.BoolVar(&all, "all", false, "remove every layer that no VM uses")
	return cmd
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// showLayers prints layers and their sum.
func showLayers(w io.Writer, list []layer.Entry, asJSON bool, what string) error {
	var total int64
	for _, e := range list {
		total += e.Size
	}
	if asJSON {
		return show.JSON(w, map[string]any{"layers": list, "bytes": total})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(list) > 0 {
		fmt.Fprintln(tw, "ROOT HASH\tSIZE\tLAST USED\tIN USE\tSNAPSHOTS")
	}
	for _, e := range list {
		sources := strings.Join(e.Sources, " ")
		if !e.Needed() {
			sources = "(gone)"
		}
		fmt.Fprintf(tw, "%.12s\t%s\t%s\t%v\t%s\n",
			e.RootHash, mebibytes(e.Size), e.LastUsed.Format(time.DateTime), e.InUse, sources)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d layers %s, %s\n", len(list), what, mebibytes(total))
	return err
}
