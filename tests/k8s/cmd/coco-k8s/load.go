// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// loadPod writes a line every twentieth of a second and a chunk of 64 KiB each second: the kubelet rotates its log
// several times in half an hour.
const loadPod = `apiVersion: v1
kind: Pod
metadata: {name: load}
spec:
  runtimeClassName: coco
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: writer
    image: ` + kube.Busybox + `
    command: [sh, -c, "i=0; while true; do i=$((i+1)); echo line $i; [ $((i%20)) = 0 ] && head -c 49152 /dev/urandom | base64 -w 120; sleep 0.05; done"]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
  - name: idle
    image: ` + kube.Busybox + `
    command: [sleep, "100000"]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
`

const (
	loadWarm  = 3 * time.Minute // caches fill, heaps find their size
	loadEvery = time.Minute     // between two looks
)

// Growth that is taken for a leak. A process's memory moves by some; descriptors and threads of a shim that serves one
// pod do not add up.
const (
	loadShimKiB       = 2 << 10
	loadContainerdKiB = 32 << 10
	loadFDs           = 24
)

// weights is what must not grow under load.
type weights struct {
	shim, shimAnon, shimFDs, shimThreads int
	vmm, vmmFDs                          int
	node                                 sample
}

// load keeps one pod busy with exec, logs and output, for s.duration, and watches what shim, VMM, containerd and
// kubelet take.
func (s *settings) load(ctx context.Context) error {
	n, err := s.cluster(ctx, "runc")
	if err != nil {
		return err
	}
	err = s.loadOn(ctx, n)
	return errors.Join(err, s.end(n))
}

func (s *settings) loadOn(ctx context.Context, n *kube.Node) error {
	before, err := harness.TakeTraces()
	if err != nil {
		return err
	}
	if _, err := n.Kubectl(ctx, loadPod, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := n.Kubectl(ctx, "", "wait", "--for=condition=Ready", "pod/load", "--timeout=180s"); err != nil {
		return err
	}
	var c counts
	busy, stop := context.WithTimeout(ctx, s.duration)
	defer stop()
	g, gctx := errgroup.WithContext(busy)
	g.Go(func() error { return c.execs(gctx, n) })
	g.Go(func() error { return c.logs(gctx, n) })
	g.Go(func() error { return c.follow(gctx, n) })
	g.Go(func() error { return s.watchLoad(gctx, n, &c) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := n.Kubectl(ctx, "", "delete", "pod", "load", "--wait=true", "--timeout=120s"); err != nil {
		return err
	}
	left, err := harness.Leaks(ctx, before, 60*time.Second, n.NotOfPods)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	return err
}

// counts is what the load has done so far.
type counts struct{ execN, logN, followed atomic.Int64 }

// execs runs commands in both containers, one after another, and checks what they say.
func (c *counts) execs(ctx context.Context, n *kube.Node) error {
	for i := 0; ctx.Err() == nil; i++ {
		in := []string{"idle", "writer"}[i%2]
		want := fmt.Sprintf("%s %d", in, i)
		out, err := n.Kubectl(ctx, "", "exec", "load", "-c", in, "--", "sh", "-c", "echo "+want)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && out != want {
			err = fmt.Errorf("it said %q instead of %q", out, want)
		}
		if err != nil {
			return fmt.Errorf("exec %d in %s: %w", i, in, err)
		}
		c.execN.Add(1)
	}
	return nil
}

// logs reads the last lines again and again. How many there are depends on when the kubelet has rotated the log.
func (c *counts) logs(ctx context.Context, n *kube.Node) error {
	for ctx.Err() == nil {
		_, err := n.Kubectl(ctx, "", "logs", "load", "-c", "writer", "--tail=1000")
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("logs, call %d: %w", c.logN.Load(), err)
		}
		c.logN.Add(1)
	}
	return nil
}

// follow streams the log. The kubelet ends a stream now and then, as when it rotates the log; the next goes on.
func (c *counts) follow(ctx context.Context, n *kube.Node) error {
	for ctx.Err() == nil {
		most, cancel := context.WithTimeout(ctx, 20*time.Second)
		out, err := n.Kubectl(most, "", "logs", "-f", "load", "-c", "writer", "--tail=5")
		late := most.Err() != nil
		cancel()
		if err != nil && !late {
			return fmt.Errorf("follow the log: %w", err)
		}
		c.followed.Add(int64(len(out)))
	}
	return nil
}

// watchLoad looks at everybody once a minute, and in the end compares.
func (s *settings) watchLoad(ctx context.Context, n *kube.Node, c *counts) error {
	id, err := n.Sandbox(ctx, "load")
	if err != nil {
		return err
	}
	shim, vmm, err := harness.Pids(id)
	if err != nil {
		return err
	}
	warm := min(loadWarm, s.duration/4)
	var first, last weights
	tick := time.NewTicker(min(loadEvery, s.duration/8))
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			s.say("%d execs, %d logs, %d MiB followed", c.execN.Load(), c.logN.Load(), c.followed.Load()>>20)
			return last.grown(first)
		case <-tick.C:
		}
		if last, err = weigh(n, shim, vmm); err != nil {
			return err
		}
		if first == (weights{}) && time.Since(began) >= warm {
			first = last
		}
		s.say("%3.0f s: shim %.1f MiB (%.1f anonymous), %d threads, %d descriptors; VMM %.0f MiB, %d descriptors; "+
			"containerd %.0f MiB, %d descriptors; kubelet %.0f MiB; %d execs, %d logs",
			time.Since(began).Seconds(), mib(last.shim), mib(last.shimAnon), last.shimThreads, last.shimFDs,
			mib(last.vmm), last.vmmFDs,
			mib(last.node.containerd), last.node.descriptors, mib(last.node.kubelet), c.execN.Load(), c.logN.Load())
	}
}

// grown says what became too much since first.
func (w weights) grown(first weights) error {
	if first == (weights{}) {
		return errors.New("the load ended before anything could be compared: give it longer")
	}
	var errs []error
	for _, g := range []struct {
		what             string
		now, before, may int
	}{
		{"KiB of the shim", w.shim, first.shim, loadShimKiB},
		{"anonymous KiB of the shim", w.shimAnon, first.shimAnon, loadShimKiB},
		{"descriptors of the shim", w.shimFDs, first.shimFDs, loadFDs},
		{"threads of the shim", w.shimThreads, first.shimThreads, loadFDs},
		{"descriptors of the VMM", w.vmmFDs, first.vmmFDs, loadFDs},
		{"KiB of containerd", w.node.containerd, first.node.containerd, loadContainerdKiB},
		{"descriptors of containerd", w.node.descriptors, first.node.descriptors, 2 * loadFDs},
	} {
		if g.now-g.before > g.may {
			errs = append(errs, fmt.Errorf("%s: %d, after the first minutes %d", g.what, g.now, g.before))
		}
	}
	return errors.Join(errs...)
}

func weigh(n *kube.Node, shim, vmm int) (w weights, err error) {
	if w.node, err = take(n); err != nil {
		return w, err
	}
	if w.shim, w.shimAnon, err = rollup(shim); err != nil {
		return w, err
	}
	if w.vmm, _, err = rollup(vmm); err != nil {
		return w, err
	}
	w.shimFDs, w.shimThreads, w.vmmFDs = entries(shim, "fd"), entries(shim, "task"), entries(vmm, "fd")
	return w, nil
}

// rollup returns a process's resident and anonymous KiB.
func rollup(pid int) (rss, anon int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		switch f := strings.Fields(line); f[0] {
		case "Rss:":
			rss, err = strconv.Atoi(f[1])
		case "Anonymous:":
			anon, err = strconv.Atoi(f[1])
		}
	}
	return rss, anon, err
}

func entries(pid int, dir string) int {
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/%s/*", pid, dir))
	return len(list)
}
