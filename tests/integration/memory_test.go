// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

// A process that wants three times its container's memory is killed, and soon, however small the limit is. The guest
// goes on: another process of the container is served meanwhile. The pipeline offers itself to the kernel's killer:
// while the memory of a killed process is still being freed, the kernel may kill the next best one, which was once the
// shell.
func TestAContainerThatWantsMoreThanItsMemoryIsKilled(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	for _, runtime := range []string{harness.RuncRuntime, harness.Runtime} {
		id := newID(t)
		r := ctr(t, d, "run", "--rm", "--runtime", runtime, "--memory-limit", "20971520", harness.Image, id,
			"sh", "-c",
			"(echo 1000 >/proc/self/oom_score_adj; head -c 62914560 /dev/zero | tail -c 62914560 >/dev/null); echo $?; "+
				"exec tail -c 62914560 /dev/zero")
		if r.Code != 137 || r.Stdout != "137\n" {
			t.Errorf("%s: exit %d, %q, %q, want 137 twice", runtime, r.Code, r.Stdout, r.Stderr)
		}
	}
}
