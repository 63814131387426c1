// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// A bind mount is the host's own directory; nothing is left by a container's end, nor by
// its shim's.
func TestBindMountsAreLive(t *testing.T) {
	testvm.Need(t, testvm.Virtiofsd)
	d := daemon(t, primary)
	noLeaks(t)
	host := t.TempDir()
	write(t, filepath.Join(host, "in"), "of the host\n")
	mount := []string{"--mount", "type=bind,src=" + host + ",dst=/h,options=rbind:rw"}
	back := func() error {
		_, err := os.Stat(filepath.Join(host, "up"))
		return err
	}

	run := append([]string{"run", "--rm", "--runtime", harness.Runtime}, mount...)
	if got := must(t, d, append(run, harness.Image, newID(t), "sh", "-c",
		"cat /h/in; echo back >/h/out")...); got != "of the host\n" {
		t.Errorf("the container says %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(host, "out")); string(b) != "back\n" {
		t.Errorf("the host has %q, %v", b, err)
	}
	id := detached(t, d, harness.Runtime, append(mount, "--", "sh", "-c", "touch /h/up; sleep 1000")...)
	within(t, perCommand, back)
	shim, _, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	sigkill(t, shim)
	within(t, 10*time.Second, func() error {
		if _, vmm, _ := harness.Pids(id); vmm != 0 {
			return fmt.Errorf("VMM %d runs on", vmm)
		}
		return nil
	})
	if err := back(); err != nil {
		t.Errorf("the clean-up took a file of the host: %v", err)
	}
}
