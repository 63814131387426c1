// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// pinnedSpec has what a pod without an API server can have, so that many of the fields that a policy pins are set.
const pinnedSpec = `
  hostname: box
  automountServiceAccountToken: false
  restartPolicy: Always
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}
  initContainers:
  - name: first
    image: IMAGE
    command: [sh, -c, "echo from the first > /shared/file"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: a
    image: IMAGE
    command: [sh, -c, "echo $NAME $LITERAL; cat /shared/file; exec sleep 1000"]
    env:
    - {name: LITERAL, value: "a b"}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    livenessProbe: {exec: {command: [test, -e, /shared/file]}, periodSeconds: 2}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    securityContext:
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      readOnlyRootFilesystem: true
      seccompProfile: {type: RuntimeDefault}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: info, mountPath: /info, readOnly: true}]
  - name: b
    image: IMAGE
    command: [sh, -c, "cat /info/labels; echo; exec sleep 1000"]
    tty: true
    workingDir: /tmp
    securityContext: {runAsUser: 0, seccompProfile: {type: Unconfined}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: fast, mountPath: /fast}
    - {name: info, mountPath: /info, readOnly: true}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
`

// pin makes the policies of a manifest's pods from the manifest alone, as their owner would. It returns the manifest
// with them.
func pin(t *testing.T, images []string, version, manifest string, flags ...string) string {
	t.Helper()
	args := append([]string{"policy", "gen", "--offline", "--cache", t.TempDir()}, flags...)
	for _, file := range images {
		args = append(args, "--images", file)
	}
	if strings.HasPrefix(version, "1.") {
		args = append(args, "--containerd-1")
	}
	cmd := exec.CommandContext(t.Context(), harness.Prefix()+"/bin/coco", append(args, "-")...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(manifest), &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("coco policy gen: %v: %s", err, &problems)
	}
	return out.String()
}

// pinnedStatic pins a static pod, to whose name the kubelet adds the node's.
func pinnedStatic(t *testing.T, name, version, manifest string, flags ...string) string {
	t.Helper()
	const node = "-localhost"
	manifest = strings.Replace(manifest, "name: "+name+"\n", "name: "+name+node+"\n", 1)
	pinned := pin(t, nodes.images, version, manifest, flags...)
	text := strings.Replace(pinned, "name: "+name+node+"\n", "name: "+name+"\n", 1)
	if text == pinned {
		t.Fatalf("coco policy gen wrote no pod of the name %s%s: %s", name, node, text)
	}
	return text
}

// TestAPodRunsUnderThePolicyOfItsManifest: what a real kubelet and each containerd make of a pod is what its policy
// allows, and a pod that is changed afterwards is denied, with the reason in its status.
func TestAPodRunsUnderThePolicyOfItsManifest(t *testing.T) {
	for _, version := range []string{"1.6", "1.7", "2.4"} {
		t.Run(version, func(t *testing.T) {
			n := node(t, version)
			noLeaks(t, n)
			manifest := pinnedStatic(t, "pinned", version, manifestOf("pinned", pinnedSpec), "--allow", "logs")
			t.Run("as it is", func(t *testing.T) {
				put(t, n, "pinned", manifest)
				await(t, n, "pinned", "runs", running)
				logged(t, n, "pinned", "a", "pinned-localhost a b")
				logged(t, n, "pinned", "a", "from the first")
				if out, err := n.RunIn(t.Context(), "pinned", "a", "id"); err == nil ||
					!strings.Contains(out+err.Error(), "denied [") {
					t.Errorf("a command that no policy allows: %q, %v", out, err)
				}
			})
			if version != primary { // the denial is the guest's; only how it is told may differ
				return
			}
			t.Run("with another command", func(t *testing.T) {
				put(t, n, "pinned", strings.Replace(manifest, "exec sleep 1000", "exec sleep 2000", 1))
				pod := await(t, n, "pinned", "is denied", func(p *kube.Pod) bool {
					return strings.Contains(text(p), "denied [value]")
				})
				for _, want := range []string{"a/OCI.Process.Args[2]", "sleep 1000", "sleep 2000", "allow with:"} {
					if !strings.Contains(text(pod), want) {
						t.Errorf("the status of the changed pod does not have %q: %s", want, text(pod))
					}
				}
			})
		})
	}
}

// pinnedDeployment has what only pods of an API server can have: contents of ConfigMaps and Secrets as files and as
// variables, a token of the service account, a name that nobody knows before, and a sidecar.
const pinnedDeployment = `apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {mode: quiet, app.conf: "a = 1\n"}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {word: open}
data: {more: c2VzYW1l}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: pinned}
spec:
  selector: {matchLabels: {app: pinned}}
  template:
    metadata: {labels: {app: pinned}, annotations: {team: one}}
    spec:
      runtimeClassName: coco
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
      initContainers:
      - name: beside
        image: IMAGE
        restartPolicy: Always
        command: [sh, -c, "touch /work/beside; exec sleep 1000"]
        startupProbe: {exec: {command: [test, -e, /work/beside]}, periodSeconds: 1}
        volumeMounts: [{name: work, mountPath: /work}]
      - name: first
        image: IMAGE
        command: [cp, /conf/app.conf, /work/]
        volumeMounts: [{name: work, mountPath: /work}, {name: conf, mountPath: /conf}]
      containers:
      - name: app
        image: IMAGE
        command: [sh, -c]
        args: ["cat /work/app.conf /conf/app.conf /one; echo $MODE $WORD $P_word '$(HELLO)' $TEAM; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && cat /all/own/word; echo; exec sleep 1000"]
        env:
        - {name: HELLO, value: "hello $$(there)"}
        - {name: MODE, valueFrom: {configMapKeyRef: {name: conf, key: mode}}}
        - {name: WORD, valueFrom: {secretKeyRef: {name: key, key: more}}}
        - {name: TEAM, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['team']"}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
        envFrom: [{prefix: P_, secretRef: {name: key}}]
        resources: {limits: {memory: 64Mi, cpu: 500m}}
        readinessProbe: {exec: {command: [test, -e, /work/started]}, periodSeconds: 1}
        lifecycle:
          postStart: {exec: {command: [touch, /work/started]}}
          preStop: {exec: {command: [touch, /work/stops]}}
        volumeMounts:
        - {name: work, mountPath: /work}
        - {name: conf, mountPath: /conf}
        - {name: conf, mountPath: /one, subPath: app.conf}
        - {name: all, mountPath: /all}
        - {name: info, mountPath: /info}
      volumes:
      - {name: work, emptyDir: {}}
      - {name: conf, configMap: {name: conf, defaultMode: 0440}}
      - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
      - name: all
        projected:
          sources:
          - {configMap: {name: conf, items: [{key: mode, path: deep/mode}]}}
          - {secret: {name: key, items: [{key: word, path: own/word, mode: 0400}]}}
`

// TestADeploymentRunsUnderThePolicyOfItsManifest: nothing of what a real cluster makes of a Deployment is denied, a
// container for debugging comes in by the capability for it, and what the policy does not open is denied.
func TestADeploymentRunsUnderThePolicyOfItsManifest(t *testing.T) {
	c := client{cluster(t), t}
	noLeaks(t, c.Node)
	manifest := strings.ReplaceAll(pinnedDeployment, "IMAGE", kube.Busybox)
	manifest = pin(t, c.Images, primary, manifest, "--allow", "logs,debug,stats")
	c.do(manifest, "apply", "-f", "-")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			what, err := c.Kubectl(ctx, "", "describe", "pod", "-l", "app=pinned")
			t.Logf("%s %v; logs below %s", what, err, c.Dir)
		}
		if _, err := c.Kubectl(ctx, manifest, "delete", "--wait", "--cascade=foreground", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	eventually(t.Context(), t, "the pod is ready, and no container of it was started twice",
		func(ctx context.Context) (bool, string) {
			out, err := c.Kubectl(ctx, "", "get", "pod", "-l", "app=pinned", "-o", `jsonpath={range .items[*]}`+
				`{range .status.containerStatuses[*]}{.ready} {.restartCount}{end} {.status.initContainerStatuses}{end}`)
			if strings.Contains(out, "denied [") {
				t.Fatal("something is denied: ", out)
			}
			return strings.HasPrefix(out, "true 0 "), fmt.Sprint(out, err)
		})
	const want = "a = 1\na = 1\na = 1\nquiet sesame open hello $(there) one\nopen"
	if got := c.do("", "logs", "deploy/pinned", "-c", "app"); got != want {
		t.Errorf("the program's output is %q, want %q", got, want)
	}
	pod := c.do("", "get", "pod", "-l", "app=pinned", "-o", "name")
	c.do("", "debug", pod, "--image", kube.Busybox, "--image-pull-policy=IfNotPresent", "-c", "looks",
		"--profile=restricted", "--", "sh", "-c", "echo looks at $(hostname)")
	eventually(t.Context(), t, "the container for debugging runs", func(ctx context.Context) (bool, string) {
		out, err := c.Kubectl(ctx, "", "logs", pod, "-c", "looks")
		return out == "looks at "+strings.TrimPrefix(pod, "pod/"), fmt.Sprint(out, err)
	})
	if out, err := c.Kubectl(t.Context(), "", "exec", pod, "-c", "app", "--", "id"); err == nil {
		t.Errorf("a command that no policy allows: %q", out)
	}
	cmd := exec.CommandContext(t.Context(), harness.Prefix()+"/bin/coco", "policy", "log",
		"default/"+strings.TrimPrefix(pod, "pod/"), "--denied")
	// The shim offers each guest the host's time, which one with a policy never takes.
	out, err := cmd.CombinedOutput()
	if lines := strings.Split(string(out), "\n"); err != nil || len(lines) != 3 ||
		!strings.Contains(lines[0], "SetGuestDateTime: denied [method] ") ||
		!strings.Contains(lines[1], ": denied [value] app/process.Args: ") {
		t.Errorf("the denials in the pod's log of decisions are not those of the clock and the command: %s %v", out, err)
	}
}
