// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures the figures that the project claims, each beside a baseline from the same run,
// because the machines it runs on are noisy and only ratios mean something. It writes a table to
// standard output and JSON to -out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coco-shim/coco/internal/version"
	"github.com/coco-shim/coco/tests/harness"
)

// Figure is one measured value and what it is held against.
type Figure struct {
	Group    string    `json:"group"`
	Name     string    `json:"name"`
	Unit     string    `json:"unit"`
	Value    float64   `json:"value"` // median of Runs
	Runs     []float64 `json:"runs,omitempty"`
	Baseline string    `json:"baseline,omitempty"` // what the baseline is
	Base     float64   `json:"base,omitempty"`     // its median
	BaseRuns []float64 `json:"base_runs,omitempty"`
	Ratio    float64   `json:"ratio,omitempty"` // Value / Base
	Goal     string    `json:"goal,omitempty"`
	Note     string    `json:"note,omitempty"`
}

// Report is the whole run.
type Report struct {
	Version string    `json:"version"`
	Date    time.Time `json:"date"`
	CPUs    int       `json:"cpus"`
	Kernel  string    `json:"kernel"`
	Figures []Figure  `json:"figures"`
}

// suite is one group of measurements.
type suite struct {
	name string
	run  func(ctx context.Context, b *bench) ([]Figure, error)
}

var suites = []suite{
	{"start", benchStart},
	{"pod", benchPod},
	{"exec", benchExec},
	{"stream", benchStream},
	{"memory", benchMemory},
	{"layer", benchLayer},
	{"parallel", benchParallel},
	{"template", benchTemplate},
	{"policy", benchPolicy},
}

// bench is what the suites share.
type bench struct {
	daemon *harness.Daemon
	dir    string
	runs   int
	serial int
}

func main() {
	out := flag.String("out", "dist/bench.json", "file for the JSON report")
	only := flag.String("only", "",
		"comma-separated groups to run (default: all): start,pod,exec,stream,memory,layer,parallel,template,policy")
	runs := flag.Int("runs", 5, "runs per figure; the median counts")
	tree := flag.String("build-layer", "", "internal: build one layer from this directory, and end")
	cache := flag.String("build-cache", "", "internal: cache for -build-layer")
	flag.Parse()
	if *tree != "" {
		if err := buildLayer(*tree, *cache); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *only, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string, runs int) error {
	dir, err := os.MkdirTemp("/var/tmp", "coco-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := harness.Start(ctx, "2.4", dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Stop() }()
	b := &bench{daemon: d, dir: dir, runs: runs}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	report := Report{
		Version: version.Version, Date: time.Now().UTC(), CPUs: runtime.NumCPU(),
		Kernel: strings.TrimSpace(string(release)),
	}
	for _, s := range suites {
		if only != "" && !strings.Contains(","+only+",", ","+s.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s …\n", s.name)
		figures, err := s.run(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		report.Figures = append(report.Figures, figures...)
	}
	if err := table(report); err != nil {
		return err
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(data, '\n'), 0o644)
}

func table(r Report) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "group\tfigure\tvalue\tbaseline\tratio\tgoal\n")
	for _, f := range r.Figures {
		base, ratio := "", ""
		if f.Baseline != "" {
			base = fmt.Sprintf("%.4g %s (%s)", f.Base, f.Unit, f.Baseline)
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%.4g %s\t%s\t%s\t%s\n", f.Group, f.Name, f.Value, f.Unit, base, ratio, f.Goal)
	}
	return w.Flush()
}

// against makes a figure from the runs of the thing and of its baseline.
func against(group, name, unit, goal string, runs []float64, baseline string, base []float64) Figure {
	f := Figure{
		Group: group, Name: name, Unit: unit, Goal: goal, Runs: runs, Value: median(runs), Baseline: baseline,
		BaseRuns: base, Base: median(base),
	}
	if f.Base != 0 {
		f.Ratio = f.Value / f.Base
	}
	return f
}

// alone makes a figure without a baseline.
func alone(group, name, unit, goal string, runs ...float64) Figure {
	return Figure{Group: group, Name: name, Unit: unit, Goal: goal, Runs: runs, Value: median(runs)}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[len(s)/2]
}

// id returns a fresh container id.
func (b *bench) id() string {
	b.serial++
	return fmt.Sprintf("bench-%d", b.serial)
}

// ctr runs a command that must succeed and returns how long it took.
func (b *bench) ctr(ctx context.Context, args ...string) (harness.Result, error) {
	r := b.daemon.Ctr(ctx, args...)
	if r.Err != nil || r.Code != 0 {
		return r, fmt.Errorf("ctr %s: exit %d: %w", strings.Join(args, " "), r.Code, errors.Join(r.Err, errors.New(r.Stderr)))
	}
	return r, nil
}

// detached starts a container that sleeps and returns its id and the function that removes it.
func (b *bench) detached(ctx context.Context, runtime string, extra ...string) (string, func(), error) {
	id := b.id()
	args := append([]string{"run", "-d", "--runtime", runtime}, extra...)
	if _, err := b.ctr(ctx, append(args, harness.Image, id, "sleep", "100000")...); err != nil {
		return "", nil, err
	}
	return id, func() {
		b.daemon.Ctr(context.Background(), "task", "rm", "-f", id)
		b.daemon.Ctr(context.Background(), "container", "rm", id)
	}, nil
}
