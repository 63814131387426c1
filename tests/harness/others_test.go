// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// envRole has this test program play another one.
const envRole = "COCO_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "":
		os.Exit(m.Run())
	case "shim": // until its input ends
		fmt.Println("runs")
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "suite": // with a pod of its own
		AdoptOrphans()
		shim, err := shim("mine")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(strings.Join(otherPods(), "\n"))
		_ = shim.Process.Kill()
	}
}

// shim starts a process that looks like the shim of a pod.
func shim(id string) (*exec.Cmd, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Args = []string{"containerd-shim-coco-v2", "-namespace", "k8s.io", "-id", id}
	cmd.Env = append(os.Environ(), envRole+"=shim")
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, err = out.Read(make([]byte, 16)) // from then on its command line is this one
	return cmd, err
}

// TestPodsOfOthers: a suite that runs beside somebody else's pod knows it from its own.
func TestPodsOfOthers(t *testing.T) {
	other, err := shim("theirs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	suite := exec.Command(os.Args[0])
	suite.Env = append(os.Environ(), envRole+"=suite")
	out, err := suite.Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSpace(string(out)), "\n")
	if !slices.Contains(names, "theirs") || !slices.Contains(names, fmt.Sprintf("(pid %d)", other.Process.Pid)) {
		t.Errorf("pods of others: %q; the pod of process %d is absent", names, other.Process.Pid)
	}
	if slices.Contains(names, "mine") {
		t.Errorf("pods of others: %q; the suite's own is among them", names)
	}
	if len(otherPods()) != 0 {
		t.Error("a program that does not adopt orphans names pods of others")
	}
}
