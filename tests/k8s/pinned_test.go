// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// reportFile is where make policy-pods wants its report. With it the tests run each pod under the policy of its
// manifest, and all that they expect of the pod still has to hold.
var reportFile = os.Getenv("COCO_POLICY_PODS")

// opened is what the policies open: the tests look at outputs and run commands, and the report reads the log of
// decisions.
const opened = "logs,exec,stats,stdin,port-forward"

// row is a line of the report.
type row struct{ test, pod, containerd, outcome, denied string }

var report struct {
	sync.Mutex
	rows []row
}

// pinnedPod returns a pod's manifest with its policy if a report is wanted. kubelet adds suffix to the pod's name. A
// manifest of which no policy can be made ends the test, and is in the report with the reason.
func pinnedPod(t *testing.T, n *kube.Node, images []string, manifest, suffix string, names ...string) string {
	t.Helper()
	if reportFile == "" || n.Handler != "coco" {
		return manifest
	}
	for _, name := range names {
		if suffix != "" {
			manifest = strings.Replace(manifest, "name: "+name+"\n", "name: "+name+suffix+"\n", 1)
		}
	}
	r := row{test: t.Name(), pod: strings.Join(names, ", "), containerd: n.Version}
	text, err := generated(t.Context(), images, n.Version, manifest, "--allow", opened)
	if err != nil {
		r.outcome, r.denied = "no policy can be made of it", err.Error()
		addRow(r)
		t.Skip(err)
	}
	var denied []string
	t.Cleanup(func() { // after the pod is gone
		r.outcome, r.denied = "as without a policy", strings.Join(denied, "<br>")
		if t.Failed() {
			r.outcome = "**differs**"
		}
		addRow(r)
	})
	for _, name := range names {
		if suffix != "" {
			text = strings.Replace(text, "name: "+name+suffix+"\n", "name: "+name+"\n", 1)
		}
	}
	t.Cleanup(func() {
		for _, name := range names {
			denied = append(denied, denials(name+suffix)...)
		}
	})
	return text
}

// generated makes the policies of a manifest's pods. The error is gen's last line.
func generated(ctx context.Context, images []string, version, manifest string, flags ...string) (string, error) {
	args := append([]string{"policy", "gen", "--offline", "--cache", ""}, flags...)
	for _, file := range images {
		args = append(args, "--images", file)
	}
	if strings.HasPrefix(version, "1.") {
		args = append(args, "--containerd-1")
	}
	cmd := exec.CommandContext(ctx, harness.Prefix()+"/bin/coco", append(args, "-")...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(manifest), &out, &problems
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(problems.String()), "\n")
		return "", fmt.Errorf("%s (%w)", lines[len(lines)-1], err)
	}
	return out.String(), nil
}

// denials are those of a pod that runs, but for the clock, which no guest with a policy takes of its host.
func denials(pod string) (out []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	text, err := exec.CommandContext(ctx, harness.Prefix()+"/bin/coco", "policy", "log", "default/"+pod,
		"--denied").CombinedOutput()
	if err != nil {
		return []string{pod + " has ended, and its log with it"}
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "SetGuestDateTime") {
			out = append(out, line)
		}
	}
	return out
}

func addRow(r row) {
	report.Lock()
	defer report.Unlock()
	report.rows = append(report.rows, r)
}

const reportHead = `# Pods of the suites under the policies of their manifests

"make policy-pods" runs tests of tests/k8s with each pod under a policy that "coco policy gen" makes of its manifest and
images alone (--allow %s). What the test expects of the pod has to hold all the same. The
last column has what the guest denied by its log of decisions, but for the clock, which no guest with a policy takes of
its host. %s.

| test | pods | containerd | outcome | denials, or the reason |
|---|---|---|---|---|
`

// writeReport writes the page of the tests that were run.
func writeReport() error {
	if reportFile == "" {
		return nil
	}
	report.Lock()
	defer report.Unlock()
	slices.SortStableFunc(report.rows, func(a, b row) int { return strings.Compare(a.test, b.test) })
	var b strings.Builder
	fmt.Fprintf(&b, reportHead, opened, time.Now().UTC().Format("2006-01-02"))
	for _, r := range report.rows {
		denied := strings.ReplaceAll(strings.ReplaceAll(r.denied, "|", "\\|"), "\n", " ")
		if denied == "" {
			denied = "none"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.test, r.pod, r.containerd, r.outcome, denied)
	}
	return os.WriteFile(reportFile, []byte(b.String()), 0o644)
}
