// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco is the tool for people who build, check and operate coco.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/cmd/coco/internal/version"
	"github.com/coco-shim/coco/hypervisor/launch"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg { // coco check tries how a VMM is started
		fmt.Fprintln(os.Stderr, "coco:", launch.Main())
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	// The first signal asks the command to end, a second one ends the process: a command may wait where no
	// context reaches, such as in opening a pipe that nobody writes.
	context.AfterFunc(ctx, stop)
	err := newRootCmd().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "coco:", err)
		os.Exit(status(err))
	}
}

// status returns the exit status of an error: its own, if it has one.
func status(err error) int {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return 1
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "coco",
		Short:         "Containers in confidential microVMs",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		Version:       version.Get().Version, // for --version
	}
	root.SetVersionTemplate("coco {{.Version}}\n")
	root.AddCommand(commands()...)
	return root
}
