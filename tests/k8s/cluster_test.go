// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// clusterIndex keeps the cluster apart from the nodes of the other tests, which count up from firstIndex.
const clusterIndex = 90

// oneCluster is the cluster of these tests: every pod in it runs under coco.
var oneCluster struct {
	sync.Once
	node *kube.Node
	err  error
}

func cluster(t *testing.T) *kube.Node {
	t.Helper()
	if os.Geteuid() != 0 {
		absent(t, "these tests start a cluster and VMs: run as root")
	}
	oneCluster.Do(func() {
		images, err := kube.E2EImages(scratch(t))
		if err == nil {
			oneCluster.node, err = kube.StartNode(context.Background(), kube.Options{
				Dir: scratch(t), Version: primary, Handler: "coco", Index: clusterIndex, Images: images, Debug: true,
			})
		}
		if err == nil {
			err = oneCluster.node.StartCluster(context.Background(), func(string) {})
		}
		oneCluster.err = err
	})
	if errors.Is(oneCluster.err, harness.ErrAbsent) {
		absent(t, oneCluster.err.Error())
	}
	if oneCluster.err != nil {
		t.Fatal(oneCluster.err)
	}
	return oneCluster.node
}

// stopCluster ends it after the last test.
func stopCluster() error {
	n := oneCluster.node
	if n == nil {
		return nil
	}
	return n.Stop()
}

// client is kubectl, for one test.
type client struct {
	*kube.Node
	t *testing.T
}

// do runs a command that has to succeed.
func (c client) do(stdin string, args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 4*time.Minute)
	defer cancel()
	out, err := c.Kubectl(ctx, stdin, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// apply makes pods, which go when the test ends.
func (c client) apply(manifest string, pods ...string) {
	c.t.Helper()
	manifest = pinnedPod(c.t, c.Node, c.Images, strings.ReplaceAll(manifest, "IMAGE", kube.Busybox), "", pods...)
	c.do(manifest, "apply", "-f", "-")
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if c.t.Failed() {
			what, err := c.Kubectl(ctx, "", append([]string{"describe", "pod"}, pods...)...)
			c.t.Logf("%s %v; logs below %s", what, err, c.Dir)
		}
		if _, err := c.Kubectl(ctx, "", append([]string{"delete", "pod", "--wait=true", "--grace-period=1"},
			pods...)...); err != nil {
			c.t.Error(err)
		}
	})
}

// TestWhatPeopleDoWithKubectl goes through logs -f, exec, cp of a tree of 100 MB, port-forward and a host port, on one
// pod whose bandwidth is limited.
func TestWhatPeopleDoWithKubectl(t *testing.T) {
	n := cluster(t)
	noLeaks(t, n)
	c := client{n, t}
	c.apply(`apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations: {kubernetes.io/ingress-bandwidth: 400M, kubernetes.io/egress-bandwidth: 400M}
spec:
  runtimeClassName: coco
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, "mkdir /www; echo served >/www/index.html; echo ready; exec httpd -f -p 80 -h /www"]
    ports: [{containerPort: 80, hostPort: 18080}]
    volumeMounts: [{name: big, mountPath: /big}]
    resources: {limits: {memory: 128Mi, cpu: "1"}}
  volumes: [{name: big, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  runtimeClassName: coco
  restartPolicy: Never
  containers:
  - {name: c, image: IMAGE, command: [sh, -c, "for i in 1 2 3; do echo line $i; sleep 1; done; exit 3"]}
`, "web", "ends")
	c.do("", "wait", "--for=condition=Ready", "pod/web", "--timeout=180s")

	out, err := n.Kubectl(t.Context(), "", "exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	var exit *exec.ExitError
	if out != "out" || !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "err") {
		t.Errorf("kubectl exec = %q, %v; want out, err and exit code 7", out, err)
	}
	if got := c.do("some input", "exec", "-i", "web", "--", "cat"); got != "some input" {
		t.Errorf("kubectl exec -i gives %q", got)
	}
	if got, err := harness.Get(fmt.Sprintf("http://%s:18080/", n.Gateway())); err != nil || got != "served\n" {
		t.Errorf("GET of the host port = %q, %v", got, err)
	}
	c.forwards()
	c.copies()

	c.do("", "wait", "--for=jsonpath={.status.containerStatuses[0].state}", "pod/ends", "--timeout=180s")
	if got := c.do("", "logs", "-f", "ends"); got != "line 1\nline 2\nline 3" {
		t.Errorf("kubectl logs -f = %q", got)
	}
	c.do("", "wait", "--for=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=3", "pod/ends",
		"--timeout=60s")
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

// forwards reaches the pod's server through kubectl port-forward.
func (c client) forwards() {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(kube.Bin(), "kubectl"), "--kubeconfig", c.Kubeconfig(), "port-forward",
		"pod/web", ":80")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	m := forwarding.FindStringSubmatch(line)
	if m == nil {
		c.t.Fatalf("kubectl port-forward said %q, %v", line, err)
	}
	for range 3 {
		if got, err := harness.Get("http://" + m[1] + "/"); err != nil || got != "served\n" {
			c.t.Errorf("GET through port-forward = %q, %v", got, err)
		}
	}
}

// copies sends a tree of 100 MB into the pod and fetches it again.
func (c client) copies() {
	c.t.Helper()
	src, back := filepath.Join(c.t.TempDir(), "tree"), filepath.Join(c.t.TempDir(), "back")
	random := rand.NewChaCha8([32]byte{1})
	for i := range 100 {
		dir := filepath.Join(src, fmt.Sprint("dir", i%10))
		data := make([]byte, 1<<20-i) // no two sizes alike
		_, _ = random.Read(data)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), data,
			0o644)); err != nil {
			c.t.Fatal(err)
		}
	}
	c.do("", "cp", src, "web:/big/tree")
	c.do("", "cp", "web:/big/tree", back)
	var out bytes.Buffer
	cmd := exec.Command("diff", "-r", src, back)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		c.t.Errorf("what came back differs: %v: %.500s", err, out.String())
	}
}

// TestPodsOverTheirLimitsAreEvictedAlone: the kubelet sees what the guest's encrypted disk takes on the host.
func TestPodsOverTheirLimitsAreEvictedAlone(t *testing.T) {
	c := client{cluster(t), t}
	noLeaks(t, c.Node)
	pod := func(name, command, volume, storage string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  runtimeClassName: coco
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [sh, -c, %q]
    volumeMounts: [{name: v, mountPath: /v}]
    resources: {limits: {ephemeral-storage: %s}}
  volumes: [{name: v, emptyDir: {%s}}]
`, name, command, storage, volume)
	}
	c.apply(pod("fills", "head -c 100000000 /dev/urandom >/v/f; sync; sleep 1000", "sizeLimit: 32Mi", "1Gi")+
		pod("writes", "head -c 100000000 /dev/urandom >/f; sync; sleep 1000", "", "32Mi")+
		pod("lives", "echo kept >/v/f; sleep 1000", "", "1Gi"), "fills", "writes", "lives")
	c.do("", "wait", "--for=condition=Ready", "pod/lives", "--timeout=180s")
	for name, want := range map[string]string{"fills": "exceeds the limit", "writes": "ephemeral local storage"} {
		c.do("", "wait", "--for=jsonpath={.status.reason}=Evicted", "pod/"+name, "--timeout=240s")
		why := c.do("", "get", "pod", name, "-o", "jsonpath={.status.message}")
		if !strings.Contains(why, want) {
			t.Errorf("the eviction's message is %q, want %q", why, want)
		}
		t.Logf("%s: %s", name, why)
	}
	if got := c.do("", "exec", "lives", "--", "cat", "/v/f"); got != "kept" {
		t.Errorf("the other pod's file holds %q", got)
	}
	if got := c.do("", "get", "node", "localhost", "-o",
		`jsonpath={.status.conditions[?(@.type=="Ready")].status}`); got != "True" {
		t.Errorf("the node is Ready = %q", got)
	}
}

// TestDescribeSaysWhyAPodCannotBe shows the sentence of the shim where people look for it.
func TestDescribeSaysWhyAPodCannotBe(t *testing.T) {
	c := client{cluster(t), t}
	noLeaks(t, c.Node)
	c.apply(`apiVersion: v1
kind: Pod
metadata: {name: hostnet}
spec:
  runtimeClassName: coco
  hostNetwork: true
  hostPID: true
  hostIPC: true
  containers: [{name: c, image: IMAGE, command: [sleep, "1000"]}]
`, "hostnet")
	eventually(t.Context(), t, "kubectl describe tells why", func(ctx context.Context) (bool, string) {
		out, err := c.Kubectl(ctx, "", "describe", "pod", "hostnet")
		for _, want := range []string{"hostNetwork", "hostPID", "hostIPC"} {
			if !strings.Contains(out, want+",") {
				return false, fmt.Sprint(out, err)
			}
		}
		return true, ""
	})
}

// selection are a few specs of each kind from the conformance suite; make k8s-test runs all of it.
var selection = []string{
	`EmptyDir volumes pod should support shared volumes between containers`,
	`ConfigMap optional updates should be reflected in volume`,
	`Projected downwardAPI should update labels on modification`,
	`Secrets should be consumable via the environment`,
	`InitContainer should invoke init containers on a RestartNever pod`,
	`Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop exec hook properly`,
	`Pods should support remote command execution over websockets`,
}

func TestASelectionOfTheConformanceSuite(t *testing.T) {
	n := cluster(t)
	log, err := os.Create(filepath.Join(n.Dir, "e2e.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	specs, err := n.E2E(t.Context(), strings.Join(selection, "|"), `\[Serial\]|\[Disruptive\]`, 2, log)
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) < len(selection) {
		t.Errorf("%d specs ran, at least %d were chosen", len(specs), len(selection))
	}
	for _, s := range specs {
		t.Logf("%s: %s, %.0f s", s.Name, s.State, s.Seconds)
		if s.State != "passed" {
			t.Errorf("%s %s: %s", s.Name, s.State, s.Failure)
		}
	}
}
