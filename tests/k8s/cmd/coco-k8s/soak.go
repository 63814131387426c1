// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

const soakPod = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  runtimeClassName: coco
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - &c
    name: a
    image: ` + kube.Busybox + `
    command: [sh, -c, "cat /shared/name; echo done; exec sleep 1000"]
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {limits: {memory: 32Mi, cpu: 500m}}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {<<: *c, name: b}
  initContainers:
  - {<<: *c, name: first, command: [sh, -c, "echo $NAME > /shared/name"]}
  volumes: [{name: shared, emptyDir: {}}]
`

// sample is what must not grow from pod to pod.
type sample struct{ containerd, kubelet, threads, descriptors int }

// soak runs pods one after another: each starts, shows its logs, takes a command and is deleted. After each nothing of
// it may be left; over all of them containerd must not grow.
func (s *settings) soak(ctx context.Context) error {
	n, err := s.cluster(ctx, "runc")
	if err != nil {
		return err
	}
	err = s.soakOn(ctx, n)
	return errors.Join(err, s.end(n))
}

func (s *settings) soakOn(ctx context.Context, n *kube.Node) error {
	var first sample
	var before harness.Traces
	var starts []float64
	for i := range s.pods {
		if i == warm { // what the first pods leave is the node's: caches, the CNI's state
			var err error
			if before, err = harness.TakeTraces(); err != nil {
				return err
			}
			if first, err = take(n); err != nil {
				return err
			}
		}
		took, err := onePod(ctx, n, fmt.Sprintf("soak-%d", i))
		if err != nil {
			return fmt.Errorf("pod %d of %d: %w", i+1, s.pods, err)
		}
		starts = append(starts, took.Seconds())
		if i < warm {
			continue
		}
		left, err := harness.Leaks(ctx, before, 60*time.Second, n.NotOfPods)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("pod %d left behind: %s", i+1, strings.Join(left, "; "))
		}
		now, err := take(n)
		if err != nil {
			return err
		}
		s.say("pod %d of %d: %.1f s; containerd %+d KiB, %+d threads, %+d descriptors since pod %d; kubelet %+d KiB",
			i+1, s.pods, took.Seconds(), now.containerd-first.containerd, now.threads-first.threads,
			now.descriptors-first.descriptors, warm, now.kubelet-first.kubelet)
		if grown := now.descriptors - first.descriptors; grown > 50 {
			return fmt.Errorf("containerd holds %d descriptors more than after pod %d", grown, warm)
		}
		if grown := now.containerd - first.containerd; i > 40 && grown > 40<<10 {
			return fmt.Errorf("containerd holds %d KiB more than after pod %d", grown, warm)
		}
	}
	s.say("%d pods, nothing left behind; the first started in %.1f s, the last in %.1f s", s.pods, starts[0],
		starts[len(starts)-1])
	return nil
}

// warm is how many pods run before anything is compared.
const warm = 5

// onePod runs a pod through its life and returns how long its start took.
func onePod(ctx context.Context, n *kube.Node, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began := time.Now()
	if _, err := n.Kubectl(ctx, fmt.Sprintf(soakPod, name), "apply", "-f", "-"); err != nil {
		return 0, err
	}
	if _, err := n.Kubectl(ctx, "", "wait", "--for=condition=Ready", "pod/"+name, "--timeout=180s"); err != nil {
		what, _ := n.Kubectl(ctx, "", "describe", "pod", name)
		return 0, fmt.Errorf("%w\n%s", err, what)
	}
	took := time.Since(began)
	logs, err := n.Kubectl(ctx, "", "logs", name, "-c", "b")
	if err != nil || logs != name+"\ndone" {
		return 0, fmt.Errorf("logs of %s are %q: %w", name, logs, err)
	}
	if out, err := n.Kubectl(ctx, "", "exec", name, "-c", "a", "--", "cat", "/shared/name"); err != nil || out != name {
		return 0, fmt.Errorf("exec in %s said %q: %w", name, out, err)
	}
	_, err = n.Kubectl(ctx, "", "delete", "pod", name, "--wait=true", "--timeout=120s")
	return took, err
}

var vmRSS = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`)

func take(n *kube.Node) (sample, error) {
	var s sample
	for _, p := range []struct {
		pid int
		to  *int
	}{{n.Containerd.PID, &s.containerd}, {n.Kubelet.PID, &s.kubelet}} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			return s, err
		}
		if m := vmRSS.FindSubmatch(text); m != nil {
			*p.to, _ = strconv.Atoi(string(m[1]))
		}
	}
	fds, err1 := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.Containerd.PID))
	threads, err2 := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", n.Containerd.PID))
	s.descriptors, s.threads = len(fds), len(threads)
	return s, errors.Join(err1, err2)
}
