// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/node"
)

// errNotInstalled is the error of commands for an installation that is there.
func errNotInstalled(n *node.Node) error {
	return fmt.Errorf("coco is not installed in %s; coco node install does it", n.Prefix)
}

func upgradeCommand() *cobra.Command {
	var o node.Options
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Make another version the current one; running pods keep theirs",
		Long: "Like install, for a host where coco is installed: the engines, names and settings are those of before. The\n" +
			"plain handlers start the version of the release from now on. Older versions that no pod uses are removed, but one.",
		Example: "  sudo ./coco-1.1/bin/coco node upgrade --dry-run\n  sudo ./coco-1.1/bin/coco node upgrade",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return again(cmd, &o, func(*node.Node, *node.Record) error { return fromSource(cmd, &o) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Source, "from", "", "unpacked release (default: the one that this program is part of)")
	f.BoolVar(&o.DryRun, "dry-run", false, "print the differences and change nothing")
	f.IntVar(&o.Keep, "keep", 1, "older versions to keep besides those that pods use; -1: all")
	return withPrefix(cmd)
}

// fromSource fills in the release that an installation copies.
func fromSource(cmd *cobra.Command, o *node.Options) (err error) {
	if o.Source == "" {
		if o.Source, err = ownSource(); err != nil {
			return err
		}
	}
	o.Release, err = releaseOf(cmd.Context(), o.Source)
	return err
}

// again installs once more, with the settings that the installation has.
func again(cmd *cobra.Command, o *node.Options, source func(*node.Node, *node.Record) error) error {
	if err := needRoot(); err != nil {
		return err
	}
	n, s, err := host(cmd, nil)
	if err != nil {
		return err
	}
	r, err := n.Installed()
	if err != nil {
		return err
	}
	if r == nil {
		return errNotInstalled(n)
	}
	if err := source(n, r); err != nil {
		return err
	}
	if o.Settings, err = json.Marshal(s); err != nil {
		return err
	}
	text, err := n.Install(cmd.Context(), *o)
	if o.DryRun {
		fmt.Fprint(cmd.OutOrStdout(), text)
	}
	return err
}

func gcCommand() *cobra.Command {
	o := node.Options{}
	cmd := &cobra.Command{
		Use:     "gc",
		Short:   "Remove versions that are not current and that no pod uses, and their handlers",
		Example: "  sudo coco node gc --dry-run",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return again(cmd, &o, func(n *node.Node, r *node.Record) (err error) {
				o.Source, o.Release, err = n.CurrentSource(r)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "print the differences and change nothing")
	return withPrefix(cmd)
}

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read every installed file, and compare it and the running engines with what was installed",
		Long: "Looks for damaged and missing files of all versions, for handlers that a running engine has not\n" +
			"loaded, and for an interrupted run. It changes nothing. The exit status is 0 when nothing is wrong.\n" +
			"What the host itself can run is the question of coco check.",
		Example: "  sudo coco node check",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			n, _, err := host(cmd, nil)
			if err != nil {
				return err
			}
			findings, err := n.Check(cmd.Context())
			if err != nil {
				return err
			}
			bad := 0
			for _, f := range findings {
				mark := "ok "
				if f.Problem != "" {
					mark = "BAD"
					bad++
				}
				if !asJSON {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", mark, f.What, f.Problem)
				}
			}
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), findings)
			}
			if bad > 0 {
				err = errors.Join(err, fmt.Errorf("%d of %d findings are bad", bad, len(findings)))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return withPrefix(cmd)
}
