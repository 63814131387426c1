// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// checkActions does actions of the list under runc and under coco.
func checkActions(t *testing.T, d *daemon, w frontends.Work) {
	t.Helper()
	plugins := filepath.Join(d.dir, "cli-plugins")
	if err := os.Mkdir(plugins, 0o700); err != nil {
		t.Fatal(err)
	}
	err := os.Symlink(testvm.Unpacked("compose", "docker-compose"), filepath.Join(plugins, "docker-compose"))
	if err != nil {
		t.Fatal(err)
	}
	side := func(runtime string) frontends.Side {
		return frontends.Side{
			Command: []string{filepath.Join(d.bin, "docker"), "-H", "unix://" + d.socket},
			Env:     []string{"DOCKER_CONFIG=" + d.dir}, Runtime: "--runtime " + runtime, Image: image,
		}
	}
	w.Dir, w.Runc, w.Coco = d.dir, side("runc"), side("coco")
	version, _, _ := strings.Cut(strings.TrimSpace(d.must("version", "-f", "{{.Server.Version}}")), "+")
	w.Version = "Docker " + version
	frontends.Run(t.Context(), w, func(err error) { t.Error(err) })
}

// TestEveryAction does all actions of the list and writes their results where make frontends wants them.
func TestEveryAction(t *testing.T) {
	if os.Getenv("COCO_FRONTENDS") == "" {
		t.Skip("takes a quarter of an hour: make frontends runs it")
	}
	for i, name := range []string{"docker-26", "docker-28"} {
		t.Run(name, func(t *testing.T) { everyAction(t, name, fmt.Sprintf("cocofe%d", i), fmt.Sprintf("10.216.%d.1/24", i)) })
	}
}

func everyAction(t *testing.T, name, bridge, address string) {
	t.Helper()
	testvm.Need(t, testvm.Compose)
	version := name
	if name == "docker-26" {
		version = "docker"
	} else {
		testvm.Need(t, testvm.Docker28)
	}
	work, err := frontends.Asked(name, frontends.Docker)
	if err != nil {
		t.Fatal(err)
	}
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		checkActions(t, startVersion(t, version, false, bridge, address), work)
	})
	left, err := harness.Leaks(t.Context(), before, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		if !strings.HasPrefix(l, "cgroup ") || !strings.HasSuffix(l, "/docker") { // one for all containers, kept by Docker
			t.Errorf("left behind: %s", l)
		}
	}
}
