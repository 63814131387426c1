// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/internal/words"
)

// InspectCommand returns coco inspect.
func InspectCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect POD",
		Short: "Show what one pod is, uses, and where the time of its start went",
		Long: "POD is the name that the user of its engine knows (NAMESPACE/NAME of Kubernetes, the name of a container\n" +
			"of Docker, the id of ctr), or the beginning of an id of the pod or of one of its containers.",
		Example: "  sudo coco inspect default/web\n  sudo coco inspect 3f2a --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := stateDir(config)
			if err != nil {
				return err
			}
			all, gerr := views(cmd.Context(), dir)
			v, err := find(all, args[0])
			if err != nil {
				return errors.Join(err, gerr)
			}
			v.fill(cmd.Context(), v)
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), v)
			}
			return printView(cmd.OutOrStdout(), v)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printView(out io.Writer, v view) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("name", "%s", v.Name)
	row("id", "%s", v.ID)
	row("engine", "%s (namespace %s of containerd)", v.Engine, v.Namespace)
	row("created", "%s", v.Created.Local().Format(time.DateTime))
	row("VM", "%d CPUs, %s, %s, platform %s", v.VCPUs, mib(v.Memory.VM), v.Hypervisor, v.Platform)
	row("memory used", "guest %s, VMM %s, shim %s", mib(v.Memory.Guest), mib(v.Memory.VMM), mib(v.Memory.Shim))
	guest := "answers"
	if !v.GuestUp {
		guest = "does not answer"
	}
	row("guest", "%s", guest)
	row("begun from", "%s", v.Begun)
	row("policy digest", "%s", v.Policy)
	row("initdata digest", "%s", v.Initdata)
	if l := v.LaunchFacts; l != nil {
		of := l.Platform
		if l.Rehearsal {
			of += ", rehearsed: no hardware vouches for it"
		}
		row("launch digest", "%s (%s, %s)", l.Digest, l.Algorithm, of)
		row("host data", "%s", l.HostData)
	} else {
		row("launch digest", "none: the platform measures nothing")
	}
	row("start", "%.2f s", v.StartS)
	printPhases(w, v.Phases)
	for _, c := range v.Containers {
		row("container", "%s %s", words.Line(c.Name, 128), c.ID)
		row("  uses", "%s, %.1f s of CPU, %d processes", mib(c.Memory), c.CPUSeconds, c.Processes)
		row("  start", "%.2f s", c.StartS)
		printPhases(w, c.Phases)
	}
	return w.Flush()
}

func printPhases(w io.Writer, phases []phaseView) {
	for _, p := range phases {
		fmt.Fprintf(w, "    %s\t%.3f s\n", p.Name, p.Seconds)
	}
}

// TopCommand returns coco top.
func TopCommand() *cobra.Command {
	var config string
	var interval time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show which pods use processors and memory now, the busiest first",
		Long: "Asks every pod twice and shows the use of processors between the two, and the memory that VM, VMM and shim\n" +
			"really take on the host.",
		Example: "  sudo coco top\n  sudo coco top --interval 5s --json\n  watch -n 3 sudo coco top",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return fmt.Errorf("--interval %v is shorter than 100ms, in which no pod uses a tick of the clock", interval)
			}
			dir, err := stateDir(config)
			if err != nil {
				return err
			}
			list, err := measureUse(cmd.Context(), dir, interval)
			if asJSON {
				return errors.Join(show.JSON(cmd.OutOrStdout(), list), err)
			}
			return errors.Join(printUse(cmd.OutOrStdout(), list), err)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between the two measurements")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// use is a line of coco top.
type use struct {
	ID     string     `json:"id"`
	Engine string     `json:"engine"`
	Name   string     `json:"name"`
	CPUs   float64    `json:"cpus"` // processors of the host in use: 1.5 is one and a half
	Of     int        `json:"vcpus"`
	Memory memoryView `json:"memory"`
}

// measureUse asks twice. A pod that came or went meanwhile is left out.
func measureUse(ctx context.Context, dir string, interval time.Duration) ([]use, error) {
	first, _ := views(ctx, dir) // the second answer has the same errors
	begun := time.Now()
	select {
	case <-ctx.Done():
		return []use{}, context.Cause(ctx)
	case <-time.After(interval):
	}
	second, err := views(ctx, dir)
	return between(first, second, time.Since(begun)), err
}

func between(first, second []view, took time.Duration) []use {
	list := []use{}
	for _, v := range second {
		at := slices.IndexFunc(first, func(f view) bool { return f.ID == v.ID && f.Created.Equal(v.Created) })
		if at < 0 {
			continue
		}
		list = append(list, use{
			v.ID, v.Engine, v.Name, max(0, v.CPUSeconds-first[at].CPUSeconds) / took.Seconds(), v.VCPUs, v.Memory,
		})
	}
	slices.SortStableFunc(list, func(a, b use) int { return cmp.Compare(b.CPUs, a.CPUs) })
	return list
}

func printUse(out io.Writer, list []use) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tENGINE\tCPU\tOF\tGUEST USES\tOF\tVMM\tSHIM")
	for _, u := range list {
		fmt.Fprintf(w, "%s\t%s\t%.0f%%\t%d00%%\t%s\t%s\t%s\t%s\n", Short(u.Name), u.Engine, u.CPUs*100, u.Of,
			mib(u.Memory.Guest), mib(u.Memory.VM), mib(u.Memory.VMM), mib(u.Memory.Shim))
	}
	return w.Flush()
}

// Short cuts an id that stands for a name.
func Short(name string) string {
	if dockerID.MatchString(name) {
		return name[:12]
	}
	return name
}
