// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/suite"
)

var (
	whole   = flag.String("cri.suite", suiteShort, "which tests of containerd's CRI suite run; \"all\" for all that can")
	only    = flag.String("cri.handler", "", "run the suite under this handler only and report, without comparing")
	report  = flag.String("cri.report", "", "write what the suite says to this page")
	keepOut = flag.String("cri.out", "", "directory for the whole output of the suite")
)

// suiteShort is what CI runs of containerd's CRI suite; `make cri-suite` runs all of it.
const suiteShort = "^(TestContainerRestart|TestAdditionalGids)$"

func TestContainerdsCRISuitePassesWhatRuncPasses(t *testing.T) {
	bin, err := harness.Binaries(primary)
	if err != nil {
		absent(t, err.Error())
	}
	program := filepath.Join(bin, "cri.test")
	if _, err := os.Stat(program); err != nil {
		absent(t, "containerd's CRI suite is absent: tests/setup.sh containerd-2.4")
	}
	if *only != "" {
		r := runSuite(t, program, *only)
		t.Logf("%s passes %d: %v", *only, len(r.Passed()), r.Passed())
		for name, test := range r.Tests {
			if test.State != "passed" {
				t.Logf("%s:\n%s", name, test.Output)
			}
		}
		return
	}
	runc := runSuite(t, program, "runc")
	coco := runSuite(t, program, "coco")
	t.Logf("runc passes %d, coco %d", len(runc.Passed()), len(coco.Passed()))
	if len(runc.Passed()) == 0 {
		t.Fatalf("nothing passes under runc: the baseline is broken\n%s", runc.Tail)
	}
	for _, wrong := range suite.Compare(runc, coco, suiteExceptions) {
		t.Error(wrong)
	}
	if *report != "" {
		page := suite.Page("containerd's CRI suite: runc and coco, test by test", suite.Intro("make cri-suite",
			"The tests of containerd "+primary+"'s `integration`, with `-runtime-handler` runc and coco"),
			suiteSkip, runc, coco, suiteExceptions)
		if err := os.WriteFile(*report, []byte(page), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// suiteExceptions pass under runc and not under coco; each reason is also in docs/limitations.md.
var suiteExceptions = map[string]string{
	"TestContainerStopSignals":                                 "pods on the host's network",
	"TestDefaultContainerStopSignal":                           "a pod on the host's network",
	"TestPodHostname":                                          "two of its pods are on the host's network",
	"TestKillShimPublishesTaskExitAndDeleteEvents":             "a pod on the host's network",
	"TestKillShimPublishesTaskExitAndDeleteEventsForContainer": "a pod on the host's network",
	"TestShutdownShimWhenPauseExitsBeforeWorkload":             "a pod on the host's network",
	"TestSharedPidMultiProcessContainerStop":                   "one of its two pods has the host's process ids",
	"TestVolumeCopyUp": "expects what the container writes into its image's " +
		"volume on the host; nothing is shared with it",
	"TestContainerTTYLeakAfterExit": "counts the terminals that the shim holds open; a container's terminal " +
		"is in the guest",
	"TestContainerStopCancellation": "sends SIGTERM within milliseconds of the start; in an emulated guest " +
		"the shell has not set its trap by then",
	"TestUpdateContainerResources_MemoryLimit": "reads the limit from the host's cgroup of the task; a container's " +
		"limits are in the guest",
}

// suiteSkip cannot run here, or says nothing about a handler: Windows; tests that start a containerd of their own with
// a configuration of their own, where there is no handler but runc; NRI plugins; runc's failpoints; releases to be
// downloaded.
var suiteSkip = strings.Join([]string{
	"Windows", "TestUpgrade", "TestReload100Pods", "TestIssue7496", "TestIssue10467", "TestIssue10244",
	"TestContainerdRestartSandboxRecover", "TestOOMEventMonitor",
	"TestRunContainerWithVolatileOption", "TestRuntimeHandlerUnpack", "TestImageVolumeSetup",
	"TestImageVolumeCheckVolatileOption", "TestCRIImagePullTimeout", "TestImageLoad",
	"Nri", "TestUpdatePodSandboxWithRestart", "TestRunPodSandboxWith.*Failure", "TestRunPodSandboxAndTeardownCNISlow",
	"TestPodSandboxController_",
	"TestKillShimPreservesExitStatusForMultipleContainers", "TestFailFastWhenConnectShim",
}, "|")

// suiteImages pushes the images that the suite uses and returns its list of them.
func suiteImages(t *testing.T, c *harness.CRI, dir string) string {
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
				"root:x:0:root\nbin:x:1:root,bin,daemon\ndaemon:x:2:root,bin,daemon\nadm:x:4:root,adm,daemon\ndisk:x:6:root\nwheel:x:10:root\nfloppy:x:11:root\ndialout:x:20:root\ntape:x:26:root\nvideo:x:27:root\nusers:x:100:games\n"),
		},
	)
	busybox := base.WithLayer(
		testimage.File{
			Path: "etc/passwd", Mode: 0o644,
			Data: []byte(
				"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
		},
		testimage.File{
			Path: "etc/group", Mode: 0o644,
			Data: []byte("root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnobody:x:65534:\n"),
		},
	)
	copyUp := base.WithLayer(
		testimage.File{Path: "test_dir", Mode: os.ModeDir | 0o755}, testimage.File{
			Path: "test_dir/test_file", Mode: 0o644,
			Data: []byte("test_content\n"),
		},
		testimage.File{Path: "C:", Mode: os.ModeDir | 0o755}, testimage.File{
			Path: "C:/weird_test_dir",
			Mode: os.ModeDir | 0o755,
		},
		testimage.File{Path: "C:/weird_test_dir/weird_test_file", Mode: 0o644, Data: []byte("test_content\n")},
		testimage.File{Path: ":colon_prefixed", Mode: os.ModeDir | 0o755},
		testimage.File{Path: ":colon_prefixed/colon_prefixed_file", Mode: 0o644, Data: []byte("test_content\n")},
	)
	copyUp.Config.Volumes = map[string]struct{}{"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}
	owner := base.WithLayer(
		testimage.File{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		testimage.File{Path: "test_dir", Mode: os.ModeDir | 0o755, UID: 65534, GID: 65534},
	)
	owner.Config.Volumes = map[string]struct{}{"/test_dir": {}}
	var list strings.Builder
	for name, im := range map[string]testimage.Image{
		"Alpine": alpine, "BusyBox": busybox, "ResourceConsumer": consumer(base), "VolumeCopyUp": copyUp,
		"VolumeOwnership": owner, "Nginx": base,
	} {
		ref, err := c.Push("cri/"+strings.ToLower(name)+":1", im)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "%s = %q\n", name, ref)
	}
	fmt.Fprintf(&list, "Pause = %q\n", c.Pause)
	file := filepath.Join(dir, "images.toml")
	if err := os.WriteFile(file, []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// consumer stands for Kubernetes' resource-consumer, of which the suite uses its `stress` only.
func consumer(base testimage.Image) testimage.Image {
	im := base.WithLayer(testimage.File{
		Path: "bin/stress", Mode: 0o755,
		Data: []byte("#!/bin/sh\n(head -c 115000000 /dev/zero; sleep 30) | tail -c 115000000 >/dev/null\n"),
	})
	im.Config.Cmd = []string{"sleep", "1000"}
	return im
}

// runSuite runs the suite against a containerd of its own.
func runSuite(t *testing.T, program, handler string) suite.Result {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "coco-suite-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := start(t, dir, handler)
	keep, stopKeeping := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- c.KeepRunning(keep) }()
	defer func() {
		stopKeeping()
		if err := errors.Join(<-kept, c.Stop()); err != nil {
			t.Error(err)
		}
	}()
	list := suiteImages(t, c, dir)
	pattern := *whole
	if pattern == "all" {
		pattern = "."
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-cri-endpoint", "unix://"+c.Socket(), "-runtime-handler", handler,
		"-image-list", list, "-containerd-bin", c.Name, "-test.v", "-test.run", pattern, "-test.skip", suiteSkip)
	cmd.Dir = dir
	var out bytes.Buffer
	var to io.Writer = &out
	if *keepOut != "" {
		f, err := os.Create(filepath.Join(*keepOut, handler+".out"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		to = io.MultiWriter(f, &out)
	}
	cmd.Stdout, cmd.Stderr = to, to
	start := time.Now()
	_ = cmd.Run() // it fails as soon as one test does; the lines tell which
	t.Logf("%s: suite took %v", handler, time.Since(start).Round(time.Second))
	if *keepOut != "" {
		if b, err := os.ReadFile(c.Log()); err == nil {
			_ = os.WriteFile(filepath.Join(*keepOut, handler+".containerd.log"), b, 0o600)
		}
	}
	return suite.Parse(out.String())
}
