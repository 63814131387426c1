// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/azure"
	"github.com/coco-shim/coco/cmd/coco/internal/cache"
	"github.com/coco-shim/coco/cmd/coco/internal/check"
	"github.com/coco-shim/coco/cmd/coco/internal/debug"
	"github.com/coco-shim/coco/cmd/coco/internal/endorse"
	"github.com/coco-shim/coco/cmd/coco/internal/evidence"
	"github.com/coco-shim/coco/cmd/coco/internal/guest"
	"github.com/coco-shim/coco/cmd/coco/internal/image"
	"github.com/coco-shim/coco/cmd/coco/internal/inside"
	"github.com/coco-shim/coco/cmd/coco/internal/kbs"
	"github.com/coco-shim/coco/cmd/coco/internal/measure"
	"github.com/coco-shim/coco/cmd/coco/internal/node"
	"github.com/coco-shim/coco/cmd/coco/internal/pods"
	"github.com/coco-shim/coco/cmd/coco/internal/policy"
	"github.com/coco-shim/coco/cmd/coco/internal/secret"
	"github.com/coco-shim/coco/cmd/coco/internal/standby"
	"github.com/coco-shim/coco/cmd/coco/internal/template"
	"github.com/coco-shim/coco/cmd/coco/internal/verify"
	"github.com/coco-shim/coco/cmd/coco/internal/version"
)

// commands lists the subcommands.
func commands() []*cobra.Command {
	return []*cobra.Command{
		azure.Command(),
		cache.Command(),
		check.Command(),
		debug.Command(),
		endorse.Command(),
		evidence.Command(),
		guest.Command(),
		image.Command(),
		kbs.Command(),
		measure.Command(),
		node.Command(),
		pods.MetricsCommand(),
		pods.ListCommand(),
		pods.InspectCommand(),
		inside.LogsCommand(),
		inside.ExecCommand(),
		pods.TopCommand(),
		policy.Command(),
		secret.Command(),
		verify.Command(),
		standby.Command(),
		template.Command(),
		version.Command(),
	}
}
