// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/k8s/kube"
)

// podTime bounds what a pod may take to reach a state, VM boot under TCG included.
const podTime = 90 * time.Second

// static runs a static pod and removes it when the test ends. The manifest is the pod's spec, indented by two.
func static(t *testing.T, n *kube.Node, name, spec string) {
	t.Helper()
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: default\nspec:\n%s", name, spec)
	if err := n.AddStatic(name, manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p, err := n.Pod(context.Background(), name)
			t.Logf("pod %s at the end: %+v, %v; logs below %s", name, p, err, n.Dir)
		}
		if err := n.RemoveStatic(name); err != nil {
			t.Error(err)
		}
		eventually(t, context.Background(), "pod "+name+" is gone", func(ctx context.Context) (bool, string) {
			p, err := n.Pod(ctx, name)
			return p == nil && err == nil, fmt.Sprint(p, err)
		})
	})
}

// eventually waits until the answer is yes; the text says what is there instead.
func eventually(t *testing.T, ctx context.Context, what string, ok func(context.Context) (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, podTime)
	defer cancel()
	for {
		yes, seen := ok(ctx)
		if yes {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not in %v: %s; at the end: %s", podTime, what, seen)
		case <-time.After(200 * time.Millisecond): // the kubelet's own API has no watch
		}
	}
}

// await waits until the pod's status is as wanted and returns it.
func await(t *testing.T, n *kube.Node, name, what string, ok func(*kube.Pod) bool) *kube.Pod {
	t.Helper()
	var pod *kube.Pod
	eventually(t, t.Context(), "pod "+name+": "+what, func(ctx context.Context) (bool, string) {
		p, err := n.Pod(ctx, name)
		if p != nil && ok(p) {
			pod = p
			return true, ""
		}
		return false, fmt.Sprintf("%+v %v", p, err)
	})
	return pod
}

func phase(want string) func(*kube.Pod) bool {
	return func(p *kube.Pod) bool { return p.Status.Phase == want }
}

// running is true when all containers run.
func running(p *kube.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return len(p.Status.ContainerStatuses) > 0
}

func run(t *testing.T, n *kube.Node, pod, container, cmd string) string {
	t.Helper()
	out, err := n.RunIn(t.Context(), pod, container, cmd)
	if err != nil {
		t.Errorf("run %q in %s/%s: %v", cmd, pod, container, err)
	}
	return strings.TrimSpace(out)
}

func TestPodOfTwoContainers(t *testing.T) {
	n := node(t, primary)
	noLeaks(t)
	static(t, n, "two", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: `+kube.Busybox+`
    command: [sh, -c, "echo hello from a; uname -r; exec sleep 1000"]
  - name: b
    image: `+kube.Busybox+`
    command: [sh, -c, "echo hello from b; exec sleep 1000"]
`)
	await(t, n, "two", "runs", running)
	for _, c := range []string{"a", "b"} {
		logs, err := n.Logs(t.Context(), "two", c)
		if err != nil || !strings.Contains(logs, "hello from "+c) {
			t.Errorf("logs of %s = %q, %v", c, logs, err)
		}
	}
	if got := run(t, n, "two", "b", "hostname"); !strings.HasPrefix(got, "two-") {
		t.Errorf("hostname in b = %q", got)
	}
}
