// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/k8s/kube"
)

// underBoth runs a test on a node whose pods run under runc, which holds the test itself to account, and on one of
// ours.
func underBoth(t *testing.T, f func(*testing.T, *kube.Node)) {
	for _, handler := range []string{"runc", "coco"} {
		if reportFile != "" && handler == "runc" { // the report is about policies
			continue
		}
		t.Run(handler, func(t *testing.T) {
			n := nodeOf(t, primary, handler)
			noLeaks(t, n)
			f(t, n)
		})
	}
}

// logged waits until a container's output has the line.
func logged(t *testing.T, n *kube.Node, pod, container, want string) {
	t.Helper()
	eventually(t.Context(), t, fmt.Sprintf("output of %s/%s has the line %q", pod, container, want),
		func(ctx context.Context) (bool, string) {
			logs, err := n.Logs(ctx, pod, container)
			return err == nil && strings.Contains("\n"+logs, "\n"+want+"\n"), fmt.Sprintf("%q %v", logs, err)
		})
}

func TestContainersEndAsKubeletReportsIt(t *testing.T) {
	underBoth(t, func(t *testing.T, n *kube.Node) {
		static(t, n, "ends", `
  restartPolicy: Never
  containers:
  - name: ok
    image: IMAGE
    command: [sh, -c, "echo done"]
  - name: three
    image: IMAGE
    command: [sh, -c, "printf 'because of this' > /dev/termination-log; exit 3"]
  - name: fallback
    image: IMAGE
    command: [sh, -c, "echo the last line; exit 4"]
    terminationMessagePolicy: FallbackToLogsOnError
  - name: killed
    image: IMAGE
    command: [sh, -c, "sh -c 'kill -9 $$$$'; exit $?"]
  - name: oom
    image: IMAGE
    command: [sh, -c, "x=a; while true; do x=$x$x; done"]
    resources: {limits: {memory: 24Mi}}
  - name: absent
    image: IMAGE
    command: [/no/such/program]
`)
		pod := await(t, n, "ends", "has failed", phase("Failed"))
		for _, want := range []struct {
			name, reason, message string
			code                  int
		}{
			{"ok", "Completed", "", 0},
			{"three", "Error", "because of this", 3},
			{"fallback", "Error", "the last line\n", 4},
			{"killed", "Error", "", 137},
			{"oom", "OOMKilled", "", 137},
			{"absent", "StartError", "/no/such/program", 128},
		} {
			c, _ := pod.Container(want.name)
			s := c.State.Terminated
			if s == nil || s.ExitCode != want.code || s.Reason != want.reason || !strings.Contains(s.Message, want.message) {
				t.Errorf("container %s ended with %+v, want %d %s %q", want.name, s, want.code, want.reason, want.message)
			}
		}
		logged(t, n, "ends", "ok", "done")
	})
}

func TestContainerRestartsInALivingPod(t *testing.T) {
	underBoth(t, func(t *testing.T, n *kube.Node) {
		static(t, n, "again", `
  containers:
  - name: stays
    image: IMAGE
    command: [sleep, "1000"]
  - name: restarts
    image: IMAGE
    command: [sh, -c, "test -e /shared/once && exec sleep 1000; touch /shared/once; exit 7"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: unhealthy
    image: IMAGE
    command: [sh, -c, "touch /tmp/alive; exec sleep 1000"]
    livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
  - name: serves
    image: IMAGE
    command: [sh, -c, "mkdir /www; echo ok > /www/index.html; exec httpd -f -p 8080 -h /www"]
    readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
  volumes: [{name: shared, emptyDir: {medium: Memory, sizeLimit: 4Mi}}]
`)
		pod := await(t, n, "again", "all run, one for the second time, one is ready by its probe", func(p *kube.Pod) bool {
			restarts, _ := p.Container("restarts")
			serves, _ := p.Container("serves")
			return running(p) && restarts.RestartCount == 1 && serves.Ready
		})
		c, _ := pod.Container("restarts")
		if last := c.LastState.Terminated; last == nil || last.ExitCode != 7 {
			t.Errorf("last state of the restarted container = %+v, want exit code 7", last)
		}
		before, _ := pod.Container("stays")
		run(t, n, "again", "unhealthy", "rm /tmp/alive")
		pod = await(t, n, "again", "the unhealthy container is replaced", func(p *kube.Pod) bool {
			c, _ := p.Container("unhealthy")
			return c.RestartCount == 1 && c.State.Running != nil
		})
		if after, _ := pod.Container("stays"); after.ContainerID != before.ContainerID || after.RestartCount != 0 {
			t.Errorf("the container beside it was touched: %+v, before %+v", after, before)
		}
	})
}

func TestSecurityContexts(t *testing.T) {
	underBoth(t, func(t *testing.T, n *kube.Node) {
		static(t, n, "secure", `
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}
  containers:
  - name: user
    image: IMAGE
    command: [sh, -c, "id -u; id -g; id -G; touch /shared/f; stat -c %g /shared/f; echo end; exec sleep 1000"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: readonly
    image: IMAGE
    command: [sh, -c, "touch /x || echo the root is read-only; exec sleep 1000"]
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 0}
  - name: caps
    image: IMAGE
    command: [sh, -c, "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status; exec sleep 1000"]
    securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [NET_ADMIN]}, allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: shared, emptyDir: {}}]
`)
		await(t, n, "secure", "runs", running)
		logged(t, n, "secure", "user", "1000\n3000\n3000 2000 4000\n2000\nend")
		logged(t, n, "secure", "readonly", "the root is read-only")
		logged(t, n, "secure", "caps", "CapEff:\t0000000000001000\nNoNewPrivs:\t1\nSeccomp:\t2")
	})
}

func TestVolumesOfAStaticPod(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	underBoth(t, func(t *testing.T, n *kube.Node) {
		static(t, n, "volumes", `
  containers:
  - name: c
    image: IMAGE
    command: [sh, -c, "cat /host/file /one/name /labels/labels; echo; stat -f -c %T /memory; df -k /dev/shm | awk 'NR==2{print $2}'; echo end; exec sleep 1000"]
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    volumeMounts:
    - {name: host, mountPath: /host, readOnly: true}
    - {name: host, mountPath: /one/name, subPath: file, readOnly: true}
    - {name: labels, mountPath: /labels}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: host, hostPath: {path: `+dir+`, type: Directory}}
  - {name: labels, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: memory, emptyDir: {medium: Memory}}
`)
		await(t, n, "volumes", "runs", running)
		logged(t, n, "volumes", "c", "of the host\nof the host\napp=\"volumes\"\ntier=\"test\"\ntmpfs\n65536\nend")
	})
}
