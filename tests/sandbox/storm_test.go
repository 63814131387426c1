// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Above some thirty execs at once they failed: "the agent's connection broke … EOF". COCO_STORM says how many; here
// they are more than the guest's queue of streams holds.
func TestManyExecsAtOnceAnswer(t *testing.T) {
	n := 40
	if text := os.Getenv("COCO_STORM"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	b := node(t)
	c := b.podConfig("storm")
	pod := b.pod(viaTask, c)
	id := b.container(pod, c, "storm", "sleep", "1000")
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			want := fmt.Sprintf("%d\n", i)
			r, err := b.Runtime.ExecSync(b.ctx(4*time.Minute),
				&cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", strconv.Itoa(i)}})
			if err != nil || r.GetExitCode() != 0 || string(r.GetStdout()) != want {
				t.Errorf("exec %d = %v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d execs took %s", n, time.Since(start).Round(time.Millisecond))
}
