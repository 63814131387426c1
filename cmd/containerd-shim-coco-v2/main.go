// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command containerd-shim-coco-v2 is the shim that containerd starts for each pod, and the launcher
// of the pod's VMM.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/shim"
	"github.com/coco-shim/coco/shim/task"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/host"
	"github.com/coco-shim/coco/virtcontainers/share"
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
	if len(os.Args) > 1 && os.Args[1] == standbyArg {
		if err := standbyMain(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(shim.Main(backend(nil, nil)))
}

// makePod makes pods from the configuration that their options and annotations describe. The first one may get the VM
// that waits, if there is one.
func makePod(env shim.Env, warm *boot.Warm) func(context.Context, task.PodRequest) (task.Pod, error) {
	return func(ctx context.Context, r task.PodRequest) (task.Pod, error) {
		w := warm
		warm = nil
		d, notes, err := describe(r, env.Log)
		for _, n := range notes {
			env.Log.Warn(n, "pod", r.ID)
		}
		if err != nil {
			if w != nil {
				err = errors.Join(err, w.End(ctx))
			}
			return nil, err
		}
		outside := newOutside(d.Config)
		sayWhyCold(env.Log, d, w)
		pod, err := virtcontainers.CreatePod(ctx, virtcontainers.Options{
			ID: r.ID, Namespace: env.Namespace, Bundle: r.Bundle, Spec: r.Spec, Config: d.Config,
			First: r.First, OnOOM: r.OnOOM, Log: env.Log, ShimExe: d.exe, Host: d.Host, JoinCgroup: true,
			Rehearse: d.Rehearse, Initdata: d.Initdata, Warm: w,
		})
		if err != nil {
			return nil, err
		}
		replenish(outside, d, r, env.Log)
		return task.PodOf(pod), nil
	}
}

// description is a pod's VM as its options and annotations describe it.
type description struct {
	boot.Options
	exe string // of the shim
}

// describe finds the configuration and the parts of the host that it names.
func describe(r task.PodRequest, log *slog.Logger) (d description, notes []string, err error) {
	cfg, overrides, notes, err := config(r)
	if err != nil {
		return d, notes, err
	}
	d.Options = boot.Options{
		ID: r.ID, Bundle: r.Bundle, Spec: r.Spec, Config: cfg, Log: log, Initdata: overrides[contract.KataInitdata],
	}
	if r.First != nil {
		d.First = &boot.First{Request: share.Request{ID: r.ID, Bundle: r.Bundle, Spec: r.Spec}}
	}
	if d.Rehearse, err = rehearsal(cfg, overrides); err != nil {
		return d, notes, err
	}
	if d.exe, err = os.Executable(); err != nil {
		return d, notes, fmt.Errorf("find the shim's executable: %w", err)
	}
	d.Host, err = host.New(cfg, d.exe, log)
	return d, notes, err
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
