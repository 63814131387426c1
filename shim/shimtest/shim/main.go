// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command shim is the shim with pods of host processes, for tests against a real containerd.
package main

import (
	"context"
	"os"

	"github.com/coco-shim/coco/shim"
	"github.com/coco-shim/coco/shim/shimtest/hostpod"
	"github.com/coco-shim/coco/shim/task"
)

func main() {
	os.Exit(shim.Main(shim.Backend{
		MakePod: func(shim.Env) func(context.Context, task.PodRequest) (task.Pod, error) {
			return func(context.Context, task.PodRequest) (task.Pod, error) {
				p, err := hostpod.New()
				if err != nil {
					return nil, err
				}
				return task.PodOf(p), nil
			}
		},
		Cleanup: hostpod.Cleanup,
	}))
}
