// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Group is a part of the conformance suite that is run as one.
type Group struct {
	Name  string
	Focus string // regular expressions over a spec's full name
	Skip  string
}

// never are specs that need more than one node, or that disturb the others.
const never = `\[Slow\]|\[Serial\]|\[Disruptive\]|\[Flaky\]`

// slow are specs that wait for minutes by design.
const slow = `should \*not\* be restarted|generation|monotonically increasing restart count|have restart count`

func storage(area string) Group {
	return Group{Name: "storage-" + strings.ToLower(strings.ReplaceAll(area, " ", "-")), Focus: `\[sig-storage\] ` + area +
		`.*\[Conformance\]`, Skip: never}
}

func node(name, areas string) Group {
	return Group{Name: "node-" + name, Focus: `\[sig-node\] (` + areas + `) .*\[Conformance\]`, Skip: never + `|` + slow}
}

// Areas of sig-node, so that each group takes about as long.
const (
	environment = `ConfigMap|Secrets|Downward API|Variable Expansion|Containers`
	containers  = `Container Runtime|Container Lifecycle Hook|InitContainer|Ephemeral Containers|PreStop`
	pods        = `Pods|Kubelet|KubeletManagedEtcHosts|Security Context|Sysctls|RuntimeClass`
	probes      = `Probing container`
	resize      = `Pod InPlace Resize Container`
)

// Groups are the suites of the report. Together the storage groups are the 80 specs of sig-storage for these volumes,
// the node groups are sig-node's conformance.
var Groups = []Group{
	storage("EmptyDir"),
	storage("Projected"),
	storage("ConfigMap"),
	storage("Downward API"),
	storage("Secrets"),
	storage("Subpath"),
	node("environment", environment),
	node("containers", containers),
	node("pods", pods),
	node("probes", probes),
	node("resize", resize),
	{
		"node-other", `\[sig-node\].*\[Conformance\]`,
		strings.Join([]string{never, slow, `\[sig-node\] (` + environment, containers, pods, probes, resize + `) `}, "|"),
	},
	{"node-slow", `\[sig-node\].*(` + slow + `).*\[Conformance\]`, never},
}

// Spec is how one spec ended.
type Spec struct {
	Name    string
	State   string // passed, failed, timedout, …
	Seconds float64
	Failure string // what the suite said, shortened
}

// ErrNoSpecs says that focus and skip leave nothing to run.
var ErrNoSpecs = errors.New("no spec of the e2e suite matches")

// E2E runs the specs that match focus and not skip. Its progress goes to out. Failed specs are no error.
func (n *Node) E2E(ctx context.Context, focus, skip string, procs int, out io.Writer) ([]Spec, error) {
	ginkgo, err1 := binary("ginkgo", "k8s")
	suite, err2 := binary("e2e.test", "k8s")
	kubectl, err3 := binary("kubectl", "k8s")
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	const report = "junit.xml"
	file := filepath.Join(n.Dir, report)
	_ = os.Remove(file)
	cmd := exec.CommandContext(ctx, ginkgo, fmt.Sprintf("--procs=%d", procs), "--no-color", "--timeout=3h",
		"--poll-progress-after=0s",
		"--focus="+focus, "--skip="+skip, "--junit-report="+report, "--output-dir="+n.Dir, suite, "--",
		"--kubeconfig="+n.Kubeconfig(), "--provider=skeleton", "--kubectl-path="+kubectl, "--node-os-distro=custom",
		"--allowed-not-ready-nodes=0", "--system-pods-startup-timeout=10s", "--dump-logs-on-failure=false")
	cmd.Env, cmd.Dir = append(n.env(), "TMPDIR="+n.Dir), n.Dir // the suite leaves directories behind
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, 3*time.Minute
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends its specs and writes the report
	runErr := cmd.Run()
	specs, err := readJUnit(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the e2e suite left no report: %w", err), runErr)
	}
	if len(specs) == 0 && ctx.Err() == nil {
		return nil, errors.Join(fmt.Errorf("%w: %q", ErrNoSpecs, focus), runErr)
	}
	return specs, nil
}

type junit struct {
	Suites []struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Time    float64 `xml:"time,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// notRun are states that say nothing about a spec.
var notRun = map[string]bool{"skipped": true, "pending": true, "interrupted": true, "aborted": true}

// labels are ginkgo's, behind a spec's name; Feature and the like are part of the name.
var labels = regexp.MustCompile(` \[[A-Za-z-]+(, [^\]]+)*\]$`)

func readJUnit(file string) ([]Spec, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var j junit
	if err := xml.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var specs []Spec
	for _, s := range j.Suites {
		for _, c := range s.Cases {
			if notRun[c.Status] || !strings.HasPrefix(c.Name, "[It] ") {
				continue
			}
			spec := Spec{Name: trimLabels(strings.TrimPrefix(c.Name, "[It] ")), State: c.Status, Seconds: c.Time}
			if c.Failure != nil {
				spec.Failure = shorten(c.Failure.Message, 600)
			}
			specs = append(specs, spec)
		}
	}
	return specs, nil
}

// trimLabels leaves of a spec's name what focus expressions are written against.
func trimLabels(name string) string {
	if i := strings.Index(name, "[Conformance]"); i >= 0 {
		return name[:i+len("[Conformance]")]
	}
	return labels.ReplaceAllString(name, "")
}

func shorten(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > n {
		return s[:n] + " …"
	}
	return s
}
