// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/tests/harness"
)

// usage is what a process holds.
type usage struct {
	fds, threads, rssKiB, anonKiB int
}

func usageOf(t *testing.T, pid int) usage {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid)
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	u := usage{fds: len(fds)}
	for _, l := range strings.Split(string(status), "\n") {
		var dst *int
		switch {
		case strings.HasPrefix(l, "Threads:"):
			dst = &u.threads
		case strings.HasPrefix(l, "VmRSS:"):
			dst = &u.rssKiB
		case strings.HasPrefix(l, "RssAnon:"):
			dst = &u.anonKiB
		default:
			continue
		}
		*dst, _ = strconv.Atoi(strings.Fields(l)[1])
	}
	return u
}

func TestTwoHundredExecsDoNotGrowTheShim(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sleep", "1000")
	shim, _, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	execs := func(name string, count int) { // two at a time
		var g errgroup.Group
		g.SetLimit(2)
		for n := range count {
			g.Go(func() error {
				r := d.Ctr(t.Context(), "task", "exec", "--exec-id", fmt.Sprintf("%s%d", name, n), id, "true")
				if r.Code != 0 {
					return fmt.Errorf("exec %s%d: exit %d: %s", name, n, r.Code, r.Stderr)
				}
				return r.Err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	execs("warm", 20) // pools fill, the heap finds its size
	before := usageOf(t, shim)
	execs("x", 200)
	after := usageOf(t, shim)
	t.Logf("before %+v, after %+v", before, after)
	if after.fds > before.fds {
		t.Errorf("descriptors grew from %d to %d", before.fds, after.fds)
	}
	if after.threads > before.threads+2 {
		t.Errorf("threads grew from %d to %d", before.threads, after.threads)
	}
	if after.anonKiB > before.anonKiB+1536 {
		t.Errorf("anonymous memory grew from %d to %d KiB", before.anonKiB, after.anonKiB)
	}
}

func TestThirtyContainersLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("thirty VM boots")
	}
	d := daemon(t, primary)
	noLeaks(t)
	for n := range 30 { // two at a time
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			must(t, d, "run", "--rm", "--runtime", harness.Runtime, harness.Image, newID(t), "true")
		})
	}
}
