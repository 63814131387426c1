// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/tests/harness"
)

// waiting is a standby VM as coco standby ls prints it.
type waiting struct {
	Name  string
	PID   int
	State string
	Key   string
}

// standbys is a configuration whose pods find VMs that wait, in a state directory of its own.
func standbys(t *testing.T, n int, more string) (config string) {
	t.Helper()
	state, err := os.MkdirTemp("/run", "coco-t-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	// The suite's templates are used here too, where it has any.
	if err := os.Symlink("/run/coco/templates", filepath.Join(state, "templates")); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(t.TempDir(), "config.toml")
	write(t, config, fmt.Sprintf("[runtime]\nstate_dir = %q\nstandby = %d\n%s", state, n, more))
	t.Cleanup(func() {
		cmd := exec.CommandContext(context.Background(), filepath.Join(harness.Prefix(), "bin", "coco"), "standby", "rm",
			"--config", config, "--all") // t's context has ended
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("coco standby rm: %v: %s", err, out)
		}
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	return config
}

// waitFor waits until n VMs wait and none boots to wait, and returns them.
func waitFor(t *testing.T, config string, n int) (list []waiting) {
	t.Helper()
	within(t, time.Minute, func() error {
		list = nil
		if err := json.Unmarshal([]byte(coco(t, "standby", "ls", "--config", config, "--json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, w := range list {
			if w.State != "waits" {
				return fmt.Errorf("it still %s: %v", w.State, list)
			}
		}
		if len(list) != n {
			return fmt.Errorf("%d VMs wait, not %d", len(list), n)
		}
		return nil
	})
	return list
}

const (
	wasWaiting = "pod has a standby VM"
	boots      = "VM boots, not a standby VM"
)

// runStandby runs a command in a pod of a configuration. The shim's log has to say want.
func runStandby(t *testing.T, d *harness.Daemon, config, want string, args ...string) (stdout string,
	took time.Duration,
) {
	t.Helper()
	since, id := logOf(t, d), newID(t)
	flags := []string{"run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config}
	begun := time.Now()
	r := ctr(t, d, append(append(append(flags, args...), harness.Image, id), "sh", "-c",
		"ulimit -a; ls /sys/class/net; id; echo written > /f && cat /f")...)
	took = time.Since(begun)
	if r.Code != 0 {
		t.Fatalf("exit %d: %s", r.Code, r.Stderr)
	}
	said := since()
	for line := range strings.Lines(said) {
		if strings.Contains(line, id) && strings.Contains(line, want) {
			return r.Stdout, took
		}
	}
	t.Errorf("no line of pod %s in the log says %q: %s", id, want, said)
	return r.Stdout, took
}

// A pod starts in a VM that has waited for it, has what it would have in one that boots, and another VM waits for the
// next pod. A pod of another description boots, and the log says why. So does the next pod when the process that waits
// is killed, and nothing of that stays.
func TestAPodStartsInAVMThatWaits(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config := standbys(t, 1, "")
	booted, _ := runStandby(t, d, config, boots)
	first := waitFor(t, config, 1)
	warm, took := runStandby(t, d, config, wasWaiting)
	t.Logf("in a VM that waits: %v", took)
	if warm != booted {
		t.Errorf("the pod finds %s, and one that booted %s", warm, booted)
	}
	second := waitFor(t, config, 1)
	if len(first) != 1 || len(second) != 1 {
		return
	}
	if first[0].Name == second[0].Name || first[0].Key != second[0].Key {
		t.Errorf("%v waits after %v", second, first)
	}
	runStandby(t, d, config, "none waits for pods like this", "--memory-limit", "700000000")
	coco(t, "standby", "rm", "--config", config, "--all")
	runStandby(t, d, config, boots)
	last := waitFor(t, config, 1)
	if len(last) != 1 || unix.Kill(last[0].PID, unix.SIGKILL) != nil {
		t.Fatalf("%v waits", last)
	}
	runStandby(t, d, config, boots)
	waitFor(t, config, 1)
	runStandby(t, d, config, wasWaiting)
}

// needStandby skips tests that take minutes; make standby runs them.
func needStandby(t *testing.T) {
	t.Helper()
	if os.Getenv("COCO_STANDBY") == "" {
		t.Skip("takes minutes: make standby")
	}
}

// Pods with one initdata start in each other's VMs, and pods with another one do not. The VM of a document that has
// changed ends by itself.
func TestOnlyPodsOfOneInitdataShareVMsThatWait(t *testing.T) {
	needStandby(t)
	d := daemon(t, primary)
	noLeaks(t)
	document := filepath.Join(t.TempDir(), "initdata.toml")
	initdata := func(word string) {
		write(t, document, fmt.Sprintf("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\nword = %q\n", word))
	}
	initdata("a")
	config := standbys(t, 1, fmt.Sprintf("[hypervisor]\ninitdata = %q\n", document))
	runStandby(t, d, config, boots)
	old := waitFor(t, config, 1)
	runStandby(t, d, config, wasWaiting)
	waitFor(t, config, 1)
	initdata("b")
	runStandby(t, d, config, "none waits for pods like this")
	within(t, time.Minute, func() error {
		now := waitFor(t, config, 1)
		if len(old) == 1 && len(now) == 1 && now[0].Key == old[0].Key {
			return fmt.Errorf("%v waits", now)
		}
		return nil
	})
	runStandby(t, d, config, wasWaiting)
}

// Replicas of one pod that start at once share two VMs that wait: each VM gets one pod, and the others boot.
func TestEightReplicasShareTwoVMsThatWait(t *testing.T) {
	needStandby(t)
	const replicas, n = 8, 2
	d := daemon(t, primary)
	noLeaks(t)
	config := standbys(t, n, "")
	runStandby(t, d, config, boots)
	waitFor(t, config, n)
	since := logOf(t, d)
	var wg sync.WaitGroup
	for range replicas {
		id := newID(t)
		wg.Go(func() {
			r := d.Ctr(t.Context(), "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config,
				harness.Image, id, "true")
			if r.Err != nil || r.Code != 0 {
				t.Errorf("pod %s: exit %d, %v: %s", id, r.Code, r.Err, r.Stderr)
			}
		})
	}
	wg.Wait()
	said := since()
	warm, cold := strings.Count(said, wasWaiting), strings.Count(said, boots)
	t.Logf("%d in VMs that waited, %d booted", warm, cold)
	if warm < n || warm+cold != replicas {
		t.Errorf("%d pods in VMs that waited and %d that booted, of %d", warm, cold, replicas)
	}
	waitFor(t, config, n)
}

// What a VM that waits saves, beside boots of the same run.
func TestTimesOfVMsThatWait(t *testing.T) {
	needStandby(t)
	const runs = 5
	d := daemon(t, primary)
	noLeaks(t)
	config := standbys(t, 1, "template = \"off\"\n")
	none := filepath.Join(t.TempDir(), "config.toml")
	write(t, none, "[runtime]\ntemplate = \"off\"\n")
	runStandby(t, d, config, boots)
	var warm, cold []time.Duration
	for i := range runs {
		if list := waitFor(t, config, 1); i == 0 && len(list) == 1 {
			t.Logf("one that waits has %d MiB", shareOf(t, append(harness.Children(list[0].PID), list[0].PID)...))
		}
		_, took := runStandby(t, d, config, wasWaiting)
		warm = append(warm, took)
		waitFor(t, config, 1)
		_, took = runStandby(t, d, none, "VM runs")
		cold = append(cold, took)
	}
	slices.Sort(warm)
	slices.Sort(cold)
	t.Logf("medians of %d: %v in a VM that waited, %v booted: %.2f", runs, warm[runs/2], cold[runs/2],
		float64(warm[runs/2])/float64(cold[runs/2]))
}

// shareOf is the proportional set size of processes, in MiB.
func shareOf(t *testing.T, pids ...int) (mib int) {
	t.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				if err != nil {
					t.Fatal(err)
				}
				mib += kib >> 10
			}
		}
	}
	return mib
}
