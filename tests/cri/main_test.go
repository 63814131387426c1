// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cri drives containerd's CRI as the kubelet does, with our handler and real VMs: pods of
// several containers, the namespaces that they share, their security contexts, their ends.
package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/tests/harness"
)

// primary is the containerd that the tests use.
const primary = "2.4"

var shared struct {
	sync.Mutex
	cri *harness.CRI
	dir string
}

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if shared.cri != nil {
		if err := errors.Join(shared.cri.Stop(), os.RemoveAll(shared.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// node returns the shared containerd, started on first use.
func node(t *testing.T) *harness.CRI {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cri != nil {
		return shared.cri
	}
	dir, err := os.MkdirTemp("/var/tmp", "coco-cri-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if shared.cri == nil { // skipped or failed; TestMain removes the directory of one that started
			_ = os.RemoveAll(dir)
		}
	}()
	shared.cri, shared.dir = start(t, dir, "coco"), dir
	return shared.cri
}

func start(t *testing.T, dir, handler string) *harness.CRI {
	t.Helper()
	if os.Geteuid() != 0 {
		absent(t, "these tests start containerd and VMs: run as root")
	}
	if testing.Short() {
		t.Skip("boots VMs")
	}
	c, err := harness.StartCRI(context.WithoutCancel(t.Context()), primary, dir, handler)
	if errors.Is(err, harness.ErrAbsent) {
		absent(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// absent skips, or fails where everything is required, as in CI.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COCO_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}
