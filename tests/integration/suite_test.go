// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/tests/harness"
)

// suitePattern selects the tests of containerd's client suite that drive a runtime.
const suitePattern = "^(TestContainer|TestTask)"

// suiteExceptions pass under runc and not under coco; each reason is also in docs/limitations.md.
var suiteExceptions = map[string]string{
	"TestContainerKillAll":         "runs a container in the host's pid namespace",
	"TestContainerKillInitPidHost": "runs a container in the host's pid namespace",
	"TestTaskUpdate": "reads the limit from the host's cgroup of the task; a container's limits are in " +
		"the guest",
}

// suiteSkip are: TestContainerExecLargeOutputWithTTY, a hundred times 7 MB through a terminal, which takes ten
// minutes where the guest is emulated (TestTerminalLosesNothing stands for it); tests of CRIU, and tests that stop and
// start the daemon themselves, which the suite does only for a daemon of its own.
const suiteSkip = "Checkpoint|CRIU|RestartPolicy|TestContainerExecLargeOutputWithTTY"

func TestContainerdsClientSuitePassesWhatRuncPasses(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes of VM boots")
	}
	d := daemon(t, primary)
	suite := filepath.Join(d.Bin, "client.test")
	if _, err := os.Stat(suite); err != nil {
		absent(t, "containerd's client suite is absent: tests/setup.sh containerd-2.4")
	}
	reg, err := harness.NewRegistry(t.TempDir(), suiteImages(t))
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	runc := runSuite(t, reg, suite, harness.RuncRuntime)
	noLeaks(t)
	coco := runSuite(t, reg, suite, harness.Runtime)
	if len(runc.passed) < 25 {
		t.Fatalf("only %d tests pass under runc: the baseline is broken\n%s", len(runc.passed), runc.tail)
	}
	t.Logf("runc passes %d, coco %d", len(runc.passed), len(coco.passed))
	for _, name := range sorted(runc.passed) {
		reason := suiteExceptions[name]
		switch {
		case coco.passed[name] && reason != "":
			t.Errorf("%s passes now: take it off the exceptions", name)
		case !coco.passed[name] && reason == "":
			t.Errorf("%s passes under runc and not under coco:\n%s", name, coco.output[name])
		}
	}
}

func suiteImages(t *testing.T) map[string]testimage.Image {
	t.Helper()
	base, err := testimage.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	alpine := base.WithLayer(
		testimage.File{
			Path: "etc/passwd", Mode: 0o644,
			Data: []byte(
				"root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/sbin/nologin\ndaemon:x:2:2:daemon:/sbin:/sbin/nologin\nguest:x:405:100:guest:/dev/null:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"),
		},
		testimage.File{
			Path: "etc/group", Mode: 0o644,
			Data: []byte(
				"root:x:0:root\nbin:x:1:root,bin,daemon\ndaemon:x:2:root,bin,daemon\nusers:x:100:games\nnobody:x:65534:\n"),
		},
	)
	alpine.Config.Cmd = []string{"sh"}
	return map[string]testimage.Image{
		"ghcr.io/containerd/busybox:1.36":  alpine,
		"ghcr.io/containerd/alpine:3.14.0": alpine,
		"registry.k8s.io/pause:3.10.2":     base,
	}
}

type suiteResult struct {
	passed map[string]bool
	output map[string]string // of tests that did not pass
	tail   string
}

var resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)

// runSuite runs the suite against a daemon of its own and removes what its tests left in it.
func runSuite(t *testing.T, reg *harness.Registry, suite, runtime string) suiteResult {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "coco-suite-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	d, err := harness.Start(t.Context(), primary, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, id := range strings.Fields(ctr(t, d, "-n", "testing", "container", "ls", "-q").Stdout) {
			ctr(t, d, "-n", "testing", "task", "rm", "-f", id)
			ctr(t, d, "-n", "testing", "container", "rm", id)
		}
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	script := `mount --bind "$1" /etc/hosts && exec "$2" -address "$3" -no-daemon -no-criu -test.root -test.v -test.run "$4" -test.skip "$5"`
	cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", script, "sh", reg.Hosts, suite, d.Socket(),
		suitePattern, suiteSkip)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+reg.Cert, "TEST_RUNTIME="+runtime,
		"PATH="+filepath.Join(harness.Prefix(), "bin")+":"+d.Bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Dir = t.TempDir()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	_ = cmd.Run() // it fails as soon as one test does; the lines tell which
	t.Logf("%s: suite took %v", runtime, time.Since(start).Round(time.Second))
	return parseSuite(out.String())
}

func parseSuite(text string) suiteResult {
	r := suiteResult{passed: map[string]bool{}, output: map[string]string{}}
	var block []string
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, "=== RUN") {
			block = nil
		}
		block = append(block, l)
		m := resultLine.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		if m[1] == "PASS" {
			r.passed[m[2]] = true
		} else {
			r.output[m[2]] = strings.Join(block[max(0, len(block)-30):], "\n")
		}
	}
	r.tail = text[max(0, len(text)-3000):]
	return r
}

func sorted(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
