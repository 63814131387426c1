// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/k8s/kube"
)

// podTime bounds what a pod may take to reach a state, VM boot under TCG included.
const podTime = 150 * time.Second

// static runs a static pod and removes it when the test ends. The text is what follows metadata and "spec:".
func static(t *testing.T, n *kube.Node, name, spec string) {
	t.Helper()
	put(t, n, name, pinnedPod(t, n, nodes.images, manifestOf(name, spec), "-localhost", name))
}

// manifestOf is the manifest of a static pod.
func manifestOf(name, spec string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: default
  labels: {app: %s, tier: test}
spec:
  terminationGracePeriodSeconds: 2
%s`, name, name, strings.ReplaceAll(strings.Trim(spec, "\n"), "IMAGE", kube.Busybox))
}

// put runs the static pod of a manifest and removes it when the test ends.
func put(t *testing.T, n *kube.Node, name, manifest string) {
	t.Helper()
	if err := n.AddStatic(name, manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p, err := n.Pod(context.Background(), name)
			t.Logf("pod %s at the end: %s %v; logs below %s", name, text(p), err, n.Dir)
		}
		if err := n.RemoveStatic(name); err != nil {
			t.Error(err)
		}
		eventually(context.Background(), t, "pod "+name+" is gone", func(ctx context.Context) (bool, string) {
			p, err := n.Pod(ctx, name)
			return p == nil && err == nil, text(p)
		})
	})
}

// text is a pod's status for people.
func text(p *kube.Pod) string {
	if p == nil {
		return "no pod"
	}
	out, err := json.Marshal(p.Status)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// eventually waits until the answer is yes; the text says what is there instead.
func eventually(ctx context.Context, t *testing.T, what string, ok func(context.Context) (bool, string)) {
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
	eventually(t.Context(), t, "pod "+name+": "+what, func(ctx context.Context) (bool, string) {
		p, err := n.Pod(ctx, name)
		if p != nil && ok(p) {
			pod = p
			return true, ""
		}
		return false, fmt.Sprintf("%s %v", text(p), err)
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

// TestStaticPodUnderEachContainerd runs a pod of an init container and two containers, sees their logs, runs a command
// in one, and deletes the pod: nothing stays.
func TestStaticPodUnderEachContainerd(t *testing.T) {
	for _, version := range []string{"1.6", "1.7", "2.4"} {
		t.Run(version, func(t *testing.T) {
			n := node(t, version)
			noLeaks(t, n)
			static(t, n, "two", `
  initContainers:
  - name: first
    image: IMAGE
    command: [sh, -c, "echo from the first > /shared/file"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: a
    image: IMAGE
    command: [sh, -c, "echo hello from a; cat /shared/file; exec sleep 1000"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: b
    image: IMAGE
    command: [sh, -c, "echo hello from b; cat /shared/file; exec sleep 1000"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes: [{name: shared, emptyDir: {}}]
`)
			pod := await(t, n, "two", "runs", running)
			for _, c := range []string{"a", "b"} {
				want := "hello from " + c + "\nfrom the first\n"
				eventually(t.Context(), t, "logs of "+c, func(ctx context.Context) (bool, string) {
					logs, err := n.Logs(ctx, "two", c)
					return err == nil && logs == want, fmt.Sprintf("%q %v", logs, err)
				})
			}
			if got := run(t, n, "two", "b", "hostname -i"); got != pod.Status.PodIP {
				t.Errorf("address in b = %q, the pod's is %q", got, pod.Status.PodIP)
			}
			run(t, n, "two", "a", "touch /shared/by-a")
			if got := run(t, n, "two", "b", "ls /shared"); got != "by-a\nfile" {
				t.Errorf("the emptyDir seen in b = %q", got)
			}
			if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err != nil ||
				run(t, n, "two", "a", "uname -r") == strings.TrimSpace(string(kernel)) {
				t.Errorf("the container runs on the host's kernel %s (%v)", kernel, err)
			}
		})
	}
}
