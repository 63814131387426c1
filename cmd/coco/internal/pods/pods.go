// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pods has the commands that ask the running pods of this host what they are and use.
package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/words"
	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/boot"
)

// metricsSocket is where each pod serves its metrics, below a directory of its own in runtime.state_dir.
const metricsSocket = "metrics.sock"

// asked is how many pods are asked at once.
const asked = 8

// podTimeout bounds how long one pod is waited for.
const podTimeout = 15 * time.Second

// podMetrics is what one pod said.
type podMetrics struct {
	Pod     string           `json:"pod"`
	Samples []metrics.Sample `json:"metrics"`
	Launch  *launch.Expected `json:"launch,omitempty"` // what the shim says that hardware will report
	text    string
	socket  string
}

// ListCommand returns coco ps.
func ListCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the pods that run here",
		Long: "Lists the pods of all engines by the names that their users know: NAMESPACE/NAME of Kubernetes, the\n" +
			"name of a container of Docker, the id of ctr.",
		Example: "  sudo coco ps\n  sudo coco ps --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := stateDir(config)
			if err != nil {
				return err
			}
			pods, err := views(cmd.Context(), dir)
			if asJSON {
				return errors.Join(show.JSON(cmd.OutOrStdout(), pods), err)
			}
			return errors.Join(printPods(cmd.OutOrStdout(), pods, time.Now()), err)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func stateDir(config string) (string, error) {
	cfg, err := configs.Load(config)
	if err != nil {
		return "", err
	}
	return cfg.Runtime.StateDir, nil
}

// gather asks all pods, a few at once. The error joins those that did not answer; a pod that has ended meanwhile is
// none of them.
func gather(ctx context.Context, dir string) ([]podMetrics, error) {
	sockets, err := filepath.Glob(filepath.Join(dir, "*", metricsSocket))
	if err != nil {
		return nil, fmt.Errorf("look for pods: %w", err)
	}
	answers, errs := make([]podMetrics, len(sockets)), make([]error, len(sockets))
	var g errgroup.Group
	g.SetLimit(asked)
	for i, socket := range sockets {
		g.Go(func() error {
			answers[i], errs[i] = ask(ctx, socket)
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	pods := []podMetrics{}
	for i, socket := range sockets {
		if errs[i] == nil {
			pods = append(pods, answers[i])
		} else if left, _ := filepath.Glob(socket); len(left) == 0 {
			errs[i] = nil // it has ended
		}
	}
	slices.SortFunc(pods, func(a, b podMetrics) int { return strings.Compare(a.Pod, b.Pod) })
	return pods, errors.Join(errs...)
}

func ask(ctx context.Context, socket string) (podMetrics, error) {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	text, err := metrics.Get(ctx, socket)
	if err != nil {
		return podMetrics{}, err
	}
	text = printable(text)
	p := podMetrics{text: text, socket: socket}
	if p.Samples, err = metrics.Parse(text); err != nil {
		return podMetrics{}, fmt.Errorf("%s: %w", socket, err)
	}
	for _, s := range p.Samples {
		if s.Name == "coco_pod_info" {
			p.Pod = s.Labels["pod"]
		}
	}
	launch, err := os.ReadFile(filepath.Join(filepath.Dir(socket), boot.LaunchFile))
	if err != nil {
		return p, nil // no hardware measures this pod
	}
	if err := json.Unmarshal(launch, &p.Launch); err != nil {
		return podMetrics{}, fmt.Errorf("%s: %w", boot.LaunchFile, err)
	}
	return p, nil
}

// printable cleans what a shim says, line by line: an older one passes on what its guest and its pod's annotations say.
func printable(text string) string {
	const most = 16 << 10
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		b.WriteString(words.Line(line, most) + "\n")
	}
	return b.String()
}

func printPods(out io.Writer, pods []view, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tNAME\tENGINE\tAGE\tCPUS\tMEMORY\tGUEST USES\tVMM\tSHIM\tCONTAINERS\tSTART")
	for _, p := range pods {
		id := p.ID
		if len(id) > 13 {
			id = id[:13]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%.1fs\n", id, Short(p.Name), p.Engine,
			now.Sub(p.Created).Round(time.Second), p.VCPUs, mib(p.Memory.VM), mib(p.Memory.Guest), mib(p.Memory.VMM),
			mib(p.Memory.Shim), len(p.Containers), p.StartS)
	}
	return w.Flush()
}

func mib(bytes float64) string { return fmt.Sprintf("%.0f MiB", bytes/(1<<20)) }
