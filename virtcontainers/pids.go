// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/virtcontainers/process"
)

// pidsMode says whether the containers of a pod share their process ids, as far as it is known.
type pidsMode uint8

const (
	pidsUnknown  pidsMode = iota // no container has been made yet
	pidsSeparate                 // the first one did not join any
	pidsShared                   // the first one joined the pod's
)

// joinPIDs decides which process ids a container sees. Runtimes say that it joins others by the path of
// a host process's namespace, and every process of a pod goes by the VMM's pid, so the path does not
// tell whose. But all containers of a pod are alike in this, except for an ephemeral one that looks
// at another: in a pod whose containers are separate, a path means such a one. Its target is clear
// when one container runs.
func (p *Pod) joinPIDs(c *Container, joins bool) (shared bool, target string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pids.join(joins, p.runningLocked(c))
}

// runningLocked are the ids of the containers that run, but that of one, sorted.
func (p *Pod) runningLocked(but *Container) []string {
	var running []string
	for id, c := range p.containers {
		if st, _ := c.init.State(); c != but && st == process.Running {
			running = append(running, id)
		}
	}
	slices.Sort(running)
	return running
}

// join decides for a container that joins other process ids, or does not. The first container decides for the pod.
func (m *pidsMode) join(joins bool, running []string) (shared bool, target string, err error) {
	if *m == pidsUnknown {
		*m = pidsSeparate
		if joins {
			*m = pidsShared
		}
	}
	if !joins || *m == pidsShared {
		return joins, "", nil
	}
	switch len(running) {
	case 1:
		return false, running[0], nil
	case 0:
		return false, "", fmt.Errorf("it joins the process ids of another container, but none runs: %w",
			errdefs.ErrFailedPrecondition)
	}
	return false, "",
		fmt.Errorf("it joins the process ids of one of the containers %s, and the runtime does not tell of which; "+
			"share process ids in the whole pod (shareProcessNamespace), or leave the target out: %w",
			strings.Join(running, ", "), errdefs.ErrFailedPrecondition)
}
