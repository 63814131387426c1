// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
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
func checkActions(t *testing.T, d *daemon, selected func(frontends.Action) bool) frontends.Results {
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
			Command: []string{testvm.Unpacked("docker", "docker"), "-H", "unix://" + d.socket},
			Env:     []string{"DOCKER_CONFIG=" + d.dir}, Runtime: "--runtime " + runtime, Image: image,
		}
	}
	r := frontends.Run(t.Context(), frontends.Work{
		Engine: frontends.Docker, Dir: d.dir, Runc: side("runc"), Coco: side("coco"), Select: selected,
	}, func(err error) { t.Error(err) })
	r.Version = "Docker " + strings.TrimSpace(d.must("version", "-f", "{{.Server.Version}}"))
	return r
}

// TestEveryAction does all actions of the list and writes their results where make frontends wants them.
func TestEveryAction(t *testing.T) {
	out := os.Getenv("COCO_FRONTENDS")
	if out == "" {
		t.Skip("takes a quarter of an hour: make frontends runs it")
	}
	testvm.Need(t, testvm.Compose)
	selected, err := frontends.Asked()
	if err != nil {
		t.Fatal(err)
	}
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("work", func(t *testing.T) {
		d := start(t, false, "cocofe0", "10.216.0.1/24")
		if err := checkActions(t, d, selected).Write(filepath.Clean(out), selected); err != nil {
			t.Error(err)
		}
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
