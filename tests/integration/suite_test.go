// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/suite"
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

// suiteLong sends 7 MB through a terminal a hundred times. An emulated guest takes two to three seconds for each, with
// the seq of suiteImages; with busybox's it takes thirteen. CI runs TestTerminalLosesNothing in its place;
// `make client-suite` runs both.
const suiteLong = "TestContainerExecLargeOutputWithTTY"

var (
	suiteRun    = flag.String("suite.run", suitePattern, "which tests of containerd's client suite run")
	suiteWhole  = flag.Bool("suite.whole", false, "run the test of containerd's client suite that takes minutes, too")
	suiteReport = flag.String("suite.report", "", "write what containerd's client suite says to this page")
)

// suiteSkip are tests of CRIU, and tests that stop and start the daemon themselves, which the suite does only for a
// daemon of its own.
func suiteSkip() string {
	const skip = "Checkpoint|CRIU|RestartPolicy"
	if *suiteWhole {
		return skip
	}
	return skip + "|" + suiteLong
}

// suiteTime bounds one run of the suite.
func suiteTime() time.Duration {
	if *suiteWhole {
		return 50 * time.Minute
	}
	return 20 * time.Minute
}

func TestContainerdsClientSuitePassesWhatRuncPasses(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes of VM boots")
	}
	d := daemon(t, primary)
	bin := filepath.Join(d.Bin, "client.test")
	if _, err := os.Stat(bin); err != nil {
		absent(t, "containerd's client suite is absent: tests/setup.sh containerd-2.4")
	}
	reg, err := harness.NewRegistry(t.TempDir(), suiteImages(t))
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	runc := runSuite(t, reg, bin, harness.RuncRuntime)
	noLeaks(t)
	coco := runSuite(t, reg, bin, harness.Runtime)
	if len(runc.Passed()) < 25 && *suiteRun == suitePattern || len(runc.Passed()) == 0 {
		t.Fatalf("only %d tests pass under runc: the baseline is broken\n%s", len(runc.Passed()), runc.Tail)
	}
	t.Logf("runc passes %d, coco %d", len(runc.Passed()), len(coco.Passed()))
	for _, wrong := range suite.Compare(runc, coco, suiteExceptions) {
		t.Error(wrong)
	}
	if *suiteReport != "" {
		page := suite.Page("containerd's client suite: runc and coco, test by test", suite.Intro("make client-suite",
			"The tests of containerd "+primary+"'s `integration/client` that drive a runtime (`"+suitePattern+"`)"),
			suiteSkip(), runc, coco, suiteExceptions)
		if err := os.WriteFile(*suiteReport, []byte(page), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func suiteImages(t *testing.T) map[string]testimage.Image {
	t.Helper()
	base, err := testimage.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), "seq")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", exe,
		"./tests/suite/seq")
	build.Dir, build.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build seq: %v: %s", err, out)
	}
	seq, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	alpine := base.WithLayer(
		testimage.File{Path: "bin/seq", Mode: 0o755, Data: seq},
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

// runSuite runs the suite against a daemon of its own and removes what its tests left in it.
func runSuite(t *testing.T, reg *harness.Registry, bin, runtime string) suite.Result {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "coco-suite-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	config := filepath.Join(t.TempDir(), "coco.toml") // the suite's tests are about containerd: their VMs boot
	write(t, config, "[runtime]\ntemplate = \"off\"\n")
	t.Setenv(configs.EnvFile, config)
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
	ctx, cancel := context.WithTimeout(t.Context(), suiteTime())
	defer cancel()
	script := `mount --bind "$1" /etc/hosts && exec "$2" -address "$3" -no-daemon -no-criu -test.root -test.v -test.run "$4" -test.skip "$5"`
	cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", script, "sh", reg.Hosts, bin, d.Socket(),
		*suiteRun, suiteSkip())
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+reg.Cert, "TEST_RUNTIME="+runtime,
		"PATH="+filepath.Join(harness.Prefix(), "bin")+":"+d.Bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Dir = t.TempDir()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	_ = cmd.Run() // it fails as soon as one test does; the lines tell which
	t.Logf("%s: suite took %v", runtime, time.Since(start).Round(time.Second))
	return suite.Parse(out.String())
}
