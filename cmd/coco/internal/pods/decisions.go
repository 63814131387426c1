// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/policy/decisions"
	"github.com/coco-shim/coco/virtcontainers"
)

// Decisions asks a pod's shim for what the guest's policy has decided lately. The guest answers when its policy opens
// the capability stats.
func Decisions(ctx context.Context, config, pod string) ([]decisions.Decision, error) {
	dir, err := stateDir(config)
	if err != nil {
		return nil, err
	}
	all, gerr := views(ctx, dir)
	v, err := find(all, pod)
	if err != nil {
		return nil, errors.Join(err, gerr)
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	text, err := metrics.GetPage(ctx, v.socket, virtcontainers.DecisionsPage)
	if err != nil {
		return nil, fmt.Errorf("pod %s: ask for its decisions: %w", v.Name, err)
	}
	list, err := decisions.Parse(printable(text))
	if err != nil {
		return nil, fmt.Errorf("pod %s: its guest's log of decisions: %w", v.Name, err)
	}
	return list, nil
}
