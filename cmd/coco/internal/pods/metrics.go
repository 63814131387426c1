// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

// MetricsCommand returns coco metrics.
func MetricsCommand() *cobra.Command {
	var config, pod, listen string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print the metrics of the pods that run here",
		Long: "Asks every pod of this host for its metrics and prints them in Prometheus' text format, or as JSON. With\n" +
			"--listen it serves them at http://ADDRESS/metrics instead, measured anew for each request.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := stateDir(config)
			if err != nil {
				return err
			}
			if listen != "" {
				return serveNode(cmd.Context(), listen, &source{dir: dir, log: cmd.ErrOrStderr()}, metricsOnly)
			}
			pods, err := gather(cmd.Context(), dir)
			if pod != "" {
				pods = slices.DeleteFunc(pods, func(p podMetrics) bool { return !strings.HasPrefix(p.Pod, pod) })
				if len(pods) == 0 {
					return errors.Join(fmt.Errorf("no pod whose id begins with %q answers below %s", pod, dir), err)
				}
				err = nil // of other pods
			}
			if asJSON {
				return errors.Join(show.JSON(cmd.OutOrStdout(), pods), err)
			}
			_, werr := io.WriteString(cmd.OutOrStdout(), merge(pods))
			return errors.Join(werr, err)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().StringVar(&pod, "pod", "", "only the pod whose id begins so")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&listen, "listen", "",
		"serve at this address of the loopback interface, for example 127.0.0.1:9469, or at unix:///PATH")
	cmd.MarkFlagsMutuallyExclusive("listen", "json")
	cmd.MarkFlagsMutuallyExclusive("listen", "pod")
	return cmd
}

// merge puts the samples of all pods together by name, as the format demands.
func merge(pods []podMetrics) string {
	var order []string
	head, lines := map[string]string{}, map[string]string{}
	for _, p := range pods {
		for line := range strings.Lines(p.text) {
			name := line
			if rest, ok := strings.CutPrefix(line, "# "); ok {
				if f := strings.Fields(rest); len(f) > 1 {
					name = f[1]
				}
			} else {
				name = line[:max(strings.IndexAny(line, "{ "), 0)]
			}
			if head[name] == "" && lines[name] == "" {
				order = append(order, name)
			}
			switch {
			case !strings.HasPrefix(line, "#"):
				lines[name] += line
			case !strings.Contains(head[name], line):
				head[name] += line
			}
		}
	}
	var b strings.Builder
	for _, name := range order {
		b.WriteString(head[name] + lines[name])
	}
	return b.String()
}
