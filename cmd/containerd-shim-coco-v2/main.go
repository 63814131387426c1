// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command containerd-shim-coco-v2 is the shim that containerd starts for each pod, and the launcher
// of the pod's VMM.
package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/shim"
	"github.com/coco-shim/coco/shim/task"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// launchFailed is the status of a launcher that could not become the VMM.
const launchFailed = 125

func main() {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(launchFailed)
	}
	os.Exit(shim.Main(shim.Backend{MakePod: makePod, Cleanup: virtcontainers.Cleanup}))
}

// makePod makes pods from the configuration that their options and annotations describe.
func makePod(env shim.Env) func(context.Context, task.PodRequest) (task.Pod, error) {
	return func(ctx context.Context, r task.PodRequest) (task.Pod, error) {
		cfg, overrides, notes, err := config(r)
		for _, n := range notes {
			env.Log.Warn(n, "pod", r.ID)
		}
		if err != nil {
			return nil, err
		}
		rehearse, err := rehearsal(cfg, overrides)
		if err != nil {
			return nil, err
		}
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the shim's executable: %w", err)
		}
		h, err := host.New(cfg, exe, env.Log)
		if err != nil {
			return nil, err
		}
		pod, err := virtcontainers.CreatePod(ctx, virtcontainers.Options{
			ID: r.ID, Namespace: env.Namespace, Bundle: r.Bundle, Spec: r.Spec, Config: cfg,
			First: r.First, OnOOM: r.OnOOM, Log: env.Log, ShimExe: exe, Host: h, JoinCgroup: true,
			Rehearse: rehearse, Initdata: overrides[contract.KataInitdata],
		})
		if err != nil {
			return nil, err
		}
		return task.PodOf(pod), nil
	}
}

// config reads the configuration that the options name or hold, and applies the overrides, which it
// returns too: annotations of the options and of the specification, Kata's among them. The notes are about those
// without effect.
func config(r task.PodRequest) (cfg configs.Config, overrides map[string]string, notes []string, err error) {
	if len(r.Options.ConfigBody) > 0 && r.Options.ConfigPath == "" {
		cfg, err = configs.Decode("ConfigBody", bytes.NewReader(r.Options.ConfigBody))
	} else {
		cfg, err = configs.Load(r.Options.ConfigPath)
	}
	if err != nil {
		return configs.Config{}, nil, nil, err
	}
	overrides = maps.Clone(r.Options.Annotations)
	if overrides == nil {
		overrides = map[string]string{}
	}
	maps.Copy(overrides, r.Spec.Annotations)
	return cfg.ForPod(overrides)
}

// rehearsal reads the configuration whose launch digest is published besides, with the same overrides.
func rehearsal(cfg configs.Config, overrides map[string]string) (*configs.Config, error) {
	if cfg.Runtime.Rehearse == "" {
		return nil, nil
	}
	r, err := configs.Load(cfg.Runtime.Rehearse)
	if err == nil {
		r, err = r.WithAnnotations(overrides)
	}
	if err != nil {
		return nil, fmt.Errorf("runtime.rehearse: %w", err)
	}
	return &r, nil
}
