// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package standby has the commands for standby VMs: guests that have booted and wait for their pods.
package standby

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/standby"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use: "standby", Short: "List and end the VMs that wait for their pods",
		Long: "With runtime.standby = N, N VMs of each description that pods have had wait, booted, for the next pods\n" +
			"of the same description, initdata included. A pod that gets one starts without a boot. Each holds the\n" +
			"memory of an idle guest.",
	}
	cmd.AddCommand(listCommand(), removeCommand())
	return cmd
}

func store(cmd *cobra.Command) (standby.Store, error) {
	name, err := cmd.Flags().GetString("config")
	if err != nil {
		return standby.Store{}, err
	}
	c, err := configs.Load(name)
	return standby.Of(c.Runtime.StateDir), err
}

func configFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("config", "", "configuration file (default: the one that the shim takes)")
	return cmd
}

// entry is a VM as it is printed.
type entry struct {
	Name  string    `json:"name"`
	PID   int       `json:"pid"` // of the process that becomes a shim
	State string    `json:"state"`
	Key   string    `json:"key,omitempty"` // of the description
	Made  time.Time `json:"made,omitzero"`
	Of    string    `json:"of,omitempty"`
}

func entries(s standby.Store) ([]entry, error) {
	live, _, err := s.List()
	out := []entry{}
	for _, e := range live {
		state := "boots"
		if e.Meta.Key != "" {
			state = "waits"
		}
		out = append(out, entry{e.Name, e.Process.PID, state, e.Meta.Key, e.Meta.Made, e.Meta.Summary})
	}
	return out, err
}

func listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the VMs that wait, and those that boot to wait",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := store(cmd)
			if err != nil {
				return err
			}
			list, err := entries(s)
			if err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), list)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "STANDBY\tPID\tSTATE\tDESCRIPTION\tMADE\tOF")
			for _, e := range list {
				made := ""
				if !e.Made.IsZero() {
					made = e.Made.Local().Format(time.DateTime)
				}
				fmt.Fprintf(tw, "%s\t%d\t%s\t%.12s\t%s\t%s\n", e.Name, e.PID, e.State, e.Key, made, e.Of)
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
		Use:   "rm [STANDBY...]",
		Short: "End VMs that wait, or boot to wait, by the beginnings of their names",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("name standby VMs, or end --all")
			}
			s, err := store(cmd)
			if err != nil {
				return err
			}
			list, err := entries(s)
			if err != nil {
				return err
			}
			if args = fit(args); all {
				args = []string{""}
			}
			for _, a := range args {
				if err := end(cmd, s, list, a, all); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end every one")
	return configFlag(cmd)
}

// fit drops empty names, which every name begins with.
func fit(args []string) (out []string) {
	for _, a := range args {
		if a != "" {
			out = append(out, a)
		}
	}
	return out
}

// endTime bounds the wait for the end of a VM.
const endTime = 30 * time.Second

// end ends the VM whose name begins with a word, or all.
func end(cmd *cobra.Command, s standby.Store, list []entry, word string, all bool) error {
	var found []entry
	for _, e := range list {
		if strings.HasPrefix(e.Name, word) {
			found = append(found, e)
		}
	}
	if !all && len(found) != 1 {
		return fmt.Errorf("%d standby VMs begin with %q; coco standby ls lists them", len(found), word)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), endTime)
	defer cancel()
	for _, e := range found {
		if err := s.End(e.Name, unix.SIGTERM); err != nil {
			return err
		}
	}
	for _, e := range found {
		if err := s.Gone(ctx, e.Name); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(s.Dir, e.Name), err)
		}
		cmd.PrintErrf("ended %s\n", e.Name)
	}
	return nil
}
