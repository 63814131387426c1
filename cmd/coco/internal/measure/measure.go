// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure has the commands that compute launch digests: of files (packages sev and td), of the pods of a
// configuration and of those of a manifest.
package measure

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/sev"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/td"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/tpm"
)

// Command returns the group.
func Command() *cobra.Command {
	var a string
	var o configOptions
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Compute launch digests of confidential VMs before they start",
		Long: "Computes what the hardware will report for a VM. The digests go to stdout in hexadecimal and\n" +
			"nothing else does; a launch that could not succeed is refused with the reason. See docs/measurement.md.\n\n" +
			"With --config, the VMs are those of pods of a configuration, with the boot files and the command line that\n" +
			"the shim launches: one digest with --vcpus, else a table of all numbers of vCPUs that pods can get. With\n" +
			"--pod, they are the pods of a Kubernetes manifest: Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet,\n" +
			"ReplicationController, Job, CronJob, List, in one or several documents.\n\n" +
			"With --diff A B, two traces written with --json --explain are compared: what differs is why the digests differ.",
		Example: "  coco measure snp --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img --append 'quiet' --vcpus 2 " +
			"--cpu-model EPYC-v4\n" +
			"  coco measure --config /etc/coco/config.toml --vcpus 2\n" +
			"  coco measure --config /etc/coco/config.toml --pod pod.yaml\n" +
			"  coco measure --diff yesterday.json today.json",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changed := cmd.Flags().Changed
			switch {
			case changed("config") && (changed("diff") || len(args) > 0):
				return errors.New("measure: --config goes without --diff and further arguments")
			case changed("config"):
				if err := o.run(cmd); err != nil {
					return fmt.Errorf("measure --config %s: %w", o.config, err)
				}
				return nil
			case changed("pod"):
				return errors.New("measure: --pod wants --config: the configuration of the RuntimeClass")
			case changed("vcpus") || changed("memory") || changed("profile"):
				return errors.New("measure: --vcpus, --memory and --profile want --config, or a subcommand before them")
			case !changed("diff") && len(args) == 0:
				return cmd.Help()
			case !changed("diff"):
				return fmt.Errorf("measure: unknown platform %q", args[0])
			case len(args) == 0:
				return errors.New("measure: --diff wants two files")
			}
			return report.Diff(cmd.OutOrStdout(), a, args[0])
		},
	}
	cmd.Flags().StringVar(&a, "diff", "", "compare the trace in this file with the one in the file that follows")
	o.flags(cmd)
	cmd.AddCommand(sev.Command(), sev.IGVMCommand(), td.Command(), tpm.Command())
	return cmd
}
