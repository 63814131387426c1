// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

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
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
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

// pinned makes the policy of a static pod from its manifest alone, as its owner would. It returns the manifest with it.
func pinned(t *testing.T, n *kube.Node, name, version string) string {
	t.Helper()
	const node = "-localhost" // which the kubelet adds to the names of static pods
	manifest := strings.Replace(manifestOf(name, pinnedSpec), "name: "+name+"\n", "name: "+name+node+"\n", 1)
	args := []string{"policy", "gen", "--offline", "--cache", t.TempDir(), "--allow", "logs"}
	for _, file := range nodes.images {
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
	text := strings.Replace(out.String(), "name: "+name+node+"\n", "name: "+name+"\n", 1)
	if text == out.String() {
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
			manifest := pinned(t, n, "pinned", version)
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
