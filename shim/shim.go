// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shim joins the parts of the containerd-facing edge to a program: the command line, the
// actions start and delete, and the serving process with its task service and its events. The caller
// chooses which kind of pod is served.
package shim

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/internal/version"
	"github.com/coco-shim/coco/shim/bootstrap"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/events"
	"github.com/coco-shim/coco/shim/sandbox"
	"github.com/coco-shim/coco/shim/task"
)

// Name is the runtime's name as clients of containerd give it.
const Name = "io.containerd.coco.v2"

// actionTimeout bounds start and delete. containerd gives a shim less; this is for calls by hand.
const actionTimeout = time.Minute

// Env describes the serving process to a backend.
type Env = bootstrap.Env

// Backend is the kind of pod that is served.
type Backend struct {
	// MakePod returns the maker of the pod, given the process it will live in.
	MakePod func(env Env) func(ctx context.Context, r task.PodRequest) (task.Pod, error)
	// Warm finds processes that wait for pods; nil: there are none.
	Warm bootstrap.Warm
	// Cleanup releases the resources of a pod whose shim is gone.
	Cleanup func(ctx context.Context, bundle string) error
}

// Main runs the program that the command line asks for and returns its exit code. It prints errors to standard error
// and nothing else: containerd reads both streams of `start` as one.
func Main(b Backend) int {
	if err := run(b, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Name, err)
		return 1
	}
	return 0
}

func run(b Backend, args []string) error {
	inv, err := bootstrap.ParseArgs(args)
	if err != nil {
		return err
	}
	switch {
	case inv.Version:
		return printTo(os.Stdout, []byte("containerd-shim-coco-v2 "+version.Version+"\n"))
	case inv.Info:
		return info(os.Stdin, os.Stdout)
	case inv.Action == bootstrap.ActionServe:
		return serve(b, inv)
	}
	ctx, cancel := context.WithTimeout(context.Background(), actionTimeout)
	defer cancel()
	out, err := act(ctx, b, inv)
	if err != nil {
		return err
	}
	return printTo(os.Stdout, out)
}

// act is start or delete; it returns what belongs on standard output.
func act(ctx context.Context, b Backend, inv bootstrap.Invocation) ([]byte, error) {
	dir := inv.Bundle
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("find the bundle: %w", err)
		}
		dir = wd
	}
	if inv.Action == bootstrap.ActionDelete {
		return bootstrap.Delete(ctx, inv, bundle.Dir(dir), b.Cleanup)
	}
	stdin, err := bootstrap.ReadStdin(os.Stdin)
	if err != nil {
		return nil, err
	}
	params, err := bootstrap.DecodeParams(inv, stdin, os.Getenv)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the shim's executable: %w", err)
	}
	return bootstrap.Start(ctx, params, bundle.Dir(dir), exe, b.Warm)
}

// program is the services of one pod.
type program struct {
	*task.Service
	sandbox *sandbox.Service
}

// Register adds the services.
func (p program) Register(server *ttrpc.Server) {
	p.Service.Register(server)
	p.sandbox.Register(server)
}

// Stop ends the pod, of the task or of the sandbox service.
func (p program) Stop(ctx context.Context) error {
	err := p.Service.Stop(ctx)
	p.sandbox.Wait()
	return err
}

// serve serves the task and the sandbox service with their events.
func serve(b Backend, inv bootstrap.Invocation) error {
	return bootstrap.Serve(inv, b.program)
}

// ServeHanded is the serving process of a pod that a process was handed which has waited for it (bootstrap.Warm).
func ServeHanded(b Backend, text []byte, files []*os.File) error {
	return bootstrap.ServeHanded(text, files, b.program)
}

func (b Backend) program(env Env) (bootstrap.Program, error) {
	publisher := events.New(events.Config{
		Namespace: env.Namespace, TTRPCAddress: env.TTRPCAddress,
		GRPCAddress: env.Address, Binary: env.PublishBinary, Log: env.Log,
	})
	tasks := task.New(task.Config{
		Namespace: env.Namespace, MakePod: b.MakePod(env), Events: publisher, Log: env.Log,
	})
	return program{tasks, sandbox.New(tasks, env.Log)}, nil
}

// info answers containerd's question what this runtime is.
func info(in io.Reader, out io.Writer) error {
	if _, err := bootstrap.ReadStdin(in); err != nil {
		return err
	}
	data, err := proto.Marshal(&api.RuntimeInfo{Name: Name, Version: &api.RuntimeVersion{Version: version.Version}})
	if err != nil {
		return fmt.Errorf("encode runtime information: %w", err)
	}
	return printTo(out, data)
}

func printTo(w io.Writer, data []byte) error {
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}
