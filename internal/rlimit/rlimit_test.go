// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rlimit

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Original returns the limit that a program would have inherited from the process that started this one, at each call.
func TestOriginalIsWhatTheProcessWasStartedWith(t *testing.T) {
	if os.Getenv("COCO_TEST_RLIMIT") == "" { // anew, with a soft limit below the hard one
		cmd := exec.CommandContext(t.Context(), "sh", "-c",
			"ulimit -Sn 300 && ulimit -Hn 600 && exec \"$0\" -test.v -test.run TestOriginal", os.Args[0])
		cmd.Env = append(os.Environ(), "COCO_TEST_RLIMIT=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	child := func() string {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "ulimit -Sn; ulimit -Hn").CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		return string(out)
	}
	before := child()
	if n, err := Original(); err != nil || n != 300 {
		t.Errorf("Original() = %d, %v, want 300", n, err)
	}
	if after := child(); before != "300\n600\n" || after != before {
		t.Errorf("a child has %q before and %q after, want 300 and 600", before, after)
	}
}

func TestHost(t *testing.T) {
	found := map[string]specs.POSIXRlimit{}
	got, err := Host("17")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got {
		found[l.Type] = l
		if l.Soft > l.Hard {
			t.Errorf("%s: %d is above %d", l.Type, l.Soft, l.Hard)
		}
	}
	if l := found["RLIMIT_NOFILE"]; l.Soft != 17 || l.Hard < 17 {
		t.Errorf("open files: %+v, want 17", l)
	}
	for _, name := range []string{"RLIMIT_NPROC", "RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_STACK"} {
		if _, ok := found[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	for _, text := range []string{"", "x", "99999999999999999999999"} {
		if got, err := Host(text); err != nil || len(got) != len(found) {
			t.Errorf("Host(%q) = %v, %v", text, got, err)
		}
	}
}
