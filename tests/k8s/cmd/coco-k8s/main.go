// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco-k8s brings a single-node Kubernetes cluster up and down on this machine, with our shim as a handler of
// its containerd, and runs the upstream conformance suites on it under runc and under coco. The Makefile's k8s targets
// call it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

const usage = `coco-k8s up | down | test | soak | load | density [flags]; -h after a command lists its flags`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "coco-k8s:", err)
		stop()
		os.Exit(1) // stop was called
	}
}

// settings are what every command takes.
type settings struct {
	opts    kube.Options
	began   time.Time
	flags   *flag.FlagSet
	filter  string
	groups  string
	runs    string
	reports string
	procs   int
	pods    int
	limit   time.Duration
	resume  bool

	duration time.Duration
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	s := &settings{began: time.Now(), flags: flag.NewFlagSet("coco-k8s "+args[0], flag.ExitOnError)}
	s.flags.StringVar(&s.opts.Dir, "dir", "/var/tmp/coco-k8s", "everything of the node lives here")
	s.flags.StringVar(&s.opts.Version, "containerd", "2.4", "version of containerd: 1.6, 1.7, 2.1, 2.4")
	s.flags.StringVar(&s.opts.Handler, "handler", "runc", "runtime of pods that name no RuntimeClass: runc or coco")
	s.flags.IntVar(&s.opts.Index, "index", 0, "0 to 99: ports and subnet of the node, to have several")
	s.flags.BoolVar(&s.opts.Debug, "debug", false, "containerd and shim log everything")
	s.flags.StringVar(&s.groups, "groups", "",
		"test: regular expression over the groups' names (default: all but slow ones)")
	s.flags.StringVar(&s.filter, "focus", "", "test: specs of a group whose names match this only")
	s.flags.StringVar(&s.runs, "runtimes", "runc,coco", "test: which runtimes to run under")
	s.flags.StringVar(&s.reports, "report", filepath.Join(harness.Root(), "docs", "conformance"),
		"test: directory of the report; results add up there")
	s.flags.IntVar(&s.procs, "procs", 2, "test: specs at a time")
	s.flags.DurationVar(&s.limit, "limit", 0, "test: begin no group after this time; with -resume a later run goes on")
	s.flags.BoolVar(&s.resume, "resume", false, "test: leave out what the report says has passed already")
	s.flags.IntVar(&s.pods, "pods", 100, "soak: pods, one after another; density: pods at once")
	s.flags.DurationVar(&s.duration, "for", 30*time.Minute, "load: how long")
	if err := s.flags.Parse(args[1:]); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("containerd, kubelet and VMs need root: run with sudo")
	}
	switch args[0] {
	case "up":
		return s.up(ctx)
	case "down":
		return s.down()
	case "test":
		return s.test(ctx)
	case "density":
		return s.density(ctx)
	case "soak":
		return s.soak(ctx)
	case "load":
		return s.load(ctx)
	default:
		return errors.New(usage)
	}
}

func (s *settings) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// cluster brings everything up, from an empty directory.
func (s *settings) cluster(ctx context.Context, handler string) (*kube.Node, error) {
	if n, err := kube.Find(s.opts); err != nil || n != nil {
		return nil, errors.Join(err, fmt.Errorf("a node runs in %s already: make k8s-down", s.opts.Dir))
	}
	if err := os.RemoveAll(s.opts.Dir); err != nil {
		return nil, err
	}
	images := filepath.Join(s.opts.Dir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return nil, err
	}
	o := s.opts
	o.Handler = handler
	var err error
	s.say("images")
	if o.Images, err = kube.E2EImages(images); err != nil {
		return nil, err
	}
	s.say("containerd %s, default runtime %s", o.Version, handler)
	n, err := kube.StartNode(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(images), n.StartCluster(ctx, func(what string) { s.say("%s", what) })); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

func (s *settings) up(ctx context.Context) error {
	n, err := s.cluster(ctx, s.opts.Handler)
	if err != nil {
		return err
	}
	s.say("the cluster is up")
	fmt.Printf("export KUBECONFIG=%s PATH=$PATH:%s\n", n.Kubeconfig(), kube.Bin())
	fmt.Printf("kubectl apply -f %s\n", filepath.Join(harness.Root(), "deploy", "example-pod.yaml"))
	return nil
}

func (s *settings) down() error {
	n, err := kube.Find(s.opts)
	if err != nil {
		return err
	}
	if n == nil {
		s.say("nothing runs in %s", s.opts.Dir)
		return nil
	}
	err = s.end(n)
	s.say("the cluster is down; its logs are in %s", s.opts.Dir)
	return err
}

// end deletes the pods, so that the kubelet frees what they hold, and stops the node.
func (s *settings) end(n *kube.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	if n.Kubelet != nil {
		s.say("deleting pods")
		err = n.DeletePods(ctx)
	}
	s.say("stopping")
	return errors.Join(err, n.Stop())
}

func (s *settings) test(ctx context.Context) error {
	want, err := regexp.Compile(s.groups)
	if err != nil {
		return fmt.Errorf("-groups: %w", err)
	}
	file := filepath.Join(s.reports, "report.json")
	for _, runtime := range strings.Split(s.runs, ",") {
		n, err := s.cluster(ctx, runtime)
		if err != nil {
			return err
		}
		for _, g := range kube.Groups {
			if !want.MatchString(g.Name) || s.groups == "" && strings.HasSuffix(g.Name, "-slow") {
				continue
			}
			if s.limit > 0 && time.Since(s.began) > s.limit {
				s.say("%s under %s: left for a later run with -resume", g.Name, runtime)
				continue
			}
			if err = s.group(ctx, n, runtime, g, file); err != nil {
				break
			}
		}
		if err := errors.Join(err, s.end(n)); err != nil {
			return err
		}
	}
	r, err := kube.ReadReport(file)
	if err != nil {
		return err
	}
	for _, row := range r.Lost() {
		s.say("passes under runc, not under coco: %s: %s", row.Name, row.Result["coco"].Failure)
	}
	return nil
}

// group runs one group and adds it to the report at once: an interrupted run has shown what it has shown.
func (s *settings) group(ctx context.Context, n *kube.Node, runtime string, g kube.Group, file string) error {
	log, err := os.Create(filepath.Join(n.Dir, "e2e-"+g.Name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.say("%s under %s; log: %s", g.Name, runtime, log.Name())
	focus := g.Focus
	if s.filter != "" {
		focus = s.filter
	}
	skip := g.Skip
	r, err := kube.ReadReport(file)
	if err != nil {
		return err
	}
	if s.resume {
		for _, name := range r.Passed(runtime) {
			skip += "|" + regexp.QuoteMeta(name)
		}
	}
	specs, err := n.E2E(ctx, focus, skip, s.procs, log)
	if errors.Is(err, kube.ErrNoSpecs) && s.resume {
		s.say("%s under %s: nothing is left to run", g.Name, runtime)
		return nil
	}
	if err != nil {
		return err
	}
	failed := 0
	for _, spec := range specs {
		if spec.State != "passed" {
			failed++
			s.say("  %s: %s", spec.State, spec.Name)
		}
	}
	s.say("%s under %s: %d specs, %d did not pass", g.Name, runtime, len(specs), failed)
	if r, err = kube.ReadReport(file); err != nil { // again: another run may have added to it
		return err
	}
	r.Add(runtime, n.Version, commit(ctx), g, specs)
	return r.Write(s.reports)
}

func commit(ctx context.Context) string {
	cmd := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD")
	cmd.Dir = harness.Root()
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
