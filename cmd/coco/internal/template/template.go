// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package template has the commands for templates: booted guests that VMs start from.
package template

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use: "template", Short: "Make, list and remove the saved guests that VMs start from",
		Long: "A template is a guest that has booted and waits for its first request. With runtime.template = \"private\"\n" +
			"(the default with QEMU on platform \"none\") a pod whose VM would be the same starts from a copy of it, in a\n" +
			"fraction of the time of a boot. The first start of a kind has its template made in the background.\n" +
			"Templates are in memory, below runtime.state_dir, until the node restarts or they are a day old.",
	}
	cmd.AddCommand(buildCommand(), listCommand(), removeCommand(), backgroundCommand())
	return cmd
}

// backgroundCommand is for shims.
func backgroundCommand() *cobra.Command {
	return &cobra.Command{
		Use:    host.MakerArgs[1],
		Short:  "Make what standard input describes; the shim calls it",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return host.Maker(cmd.Context(), cmd.InOrStdin())
		},
	}
}

func load(cmd *cobra.Command) (configs.Config, error) {
	name, err := cmd.Flags().GetString("config")
	if err != nil {
		return configs.Config{}, err
	}
	return configs.Load(name)
}

func configFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("config", "", "configuration file (default: the one that the shim takes)")
	return cmd
}

func buildCommand() *cobra.Command {
	var vcpus int
	var memory uint64
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Boot a guest and save it, unless it is there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			if vcpus > 0 {
				cfg.Hypervisor.DefaultVCPUs = vcpus
			}
			if memory > 0 {
				cfg.Hypervisor.DefaultMemoryMiB = memory
			}
			begun := time.Now()
			key, made, err := build(cmd, cfg)
			if err != nil {
				return err
			}
			if !made {
				cmd.PrintErrln("it is there already")
			} else {
				cmd.PrintErrf("made in %v\n", time.Since(begun).Round(time.Millisecond))
			}
			if cfg.Runtime.Template == configs.TemplateOff {
				cmd.PrintErrln("it has no effect yet: runtime.template is \"off\"")
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key)
			return err
		},
	}
	cmd.Flags().IntVar(&vcpus, "vcpus", 0, "processors (default: hypervisor.default_vcpus)")
	cmd.Flags().Uint64Var(&memory, "memory-mib", 0, "memory (default: hypervisor.default_memory_mib)")
	return configFlag(cmd)
}

// lockPoll is how often a lock that another process has is tried.
const lockPoll = 100 * time.Millisecond

// build makes the template when no other process makes one any more.
func build(cmd *cobra.Command, cfg configs.Config) (key string, made bool, err error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for said := false; ; said = true {
		key, made, err = host.MakeTemplate(cmd.Context(), cfg, "", slog.New(slog.DiscardHandler))
		if !errors.Is(err, host.ErrTemplateBusy) {
			return key, made, err
		}
		if !said {
			cmd.PrintErrln("another process makes a template; waiting for its end")
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return "", false, context.Cause(cmd.Context())
		}
	}
}

// entry is a template as it is printed.
type entry struct {
	Key     string    `json:"key"`
	Summary string    `json:"summary"`
	Bytes   int64     `json:"bytes"`
	Made    time.Time `json:"made"`
	Used    time.Time `json:"used"`
	Fault   string    `json:"fault,omitempty"` // why it cannot be used
}

func listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the templates, the one that was used last first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			found, err := host.Templates(cfg).List()
			if err != nil {
				return err
			}
			list := []entry{}
			for _, e := range found {
				x := entry{Key: e.Key, Summary: e.Summary, Bytes: e.Bytes, Made: e.Made, Used: e.Used.UTC()}
				if e.Err != nil {
					x.Fault = e.Err.Error()
				}
				list = append(list, x)
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), list)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "TEMPLATE\tSIZE\tMADE\tLAST USED\tOF")
			for _, e := range list {
				of := e.Summary
				if e.Fault != "" {
					of = "unusable: " + e.Fault
				}
				fmt.Fprintf(tw, "%.12s\t%.1f MiB\t%s\t%s\t%s\n", e.Key, float64(e.Bytes)/(1<<20),
					e.Made.Local().Format(time.DateTime), e.Used.Local().Format(time.DateTime), of)
			}
			return tw.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return configFlag(cmd)
}

func removeCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "rm [TEMPLATE...]",
		Short: "Remove templates, by the beginnings of their names; VMs that started from them go on",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return fmt.Errorf("name templates, or remove --all")
			}
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			templates := host.Templates(cfg)
			list, err := templates.List()
			if err != nil {
				return err
			}
			var keys []string
			for _, e := range list {
				if all {
					keys = append(keys, e.Key)
				}
			}
			for _, a := range args {
				var fits []string
				for _, e := range list {
					if a != "" && strings.HasPrefix(e.Key, a) {
						fits = append(fits, e.Key)
					}
				}
				if len(fits) != 1 {
					return fmt.Errorf("%d templates begin with %q; coco template ls lists them", len(fits), a)
				}
				keys = append(keys, fits[0])
			}
			for _, k := range keys {
				if err := templates.Remove(k); err != nil {
					return err
				}
				cmd.PrintErrf("removed %.12s\n", k)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every template")
	return configFlag(cmd)
}
