// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package k8s runs real kubelets on our shim. The tests use static pods, so that the kubelet stands alone: no API
// server, the quickest way to a real node. The conformance suites need a cluster and run on demand (make k8s-test).
package k8s

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// firstIndex leaves room for the clusters of make k8s-up.
const firstIndex = 50

// primary is the containerd that most tests use.
const primary = "2.4"

var nodes struct {
	sync.Mutex
	by     map[string]*kube.Node // by version and handler
	images []string
	dirs   []string
}

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := writeReport(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := stopCluster(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	for _, n := range nodes.by {
		if err := n.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if os.Getenv("COCO_KEEP") == "" {
		for _, dir := range nodes.dirs {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	os.Exit(code)
}

// node returns the shared node of a version of containerd whose pods run under coco.
func node(t *testing.T, version string) *kube.Node { t.Helper(); return nodeOf(t, version, "coco") }

// nodeOf returns the shared node of a version and a runtime for all pods, started on first use: a kubelet alone.
func nodeOf(t *testing.T, version, handler string) *kube.Node {
	t.Helper()
	if os.Geteuid() != 0 {
		absent(t, "these tests start a kubelet, containerd and VMs: run as root")
	}
	nodes.Lock()
	defer nodes.Unlock()
	key := version + " " + handler
	if n := nodes.by[key]; n != nil {
		return n
	}
	if nodes.images == nil {
		var err error
		if nodes.images, err = kube.BasicImages(scratch(t)); err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background() // the node outlives the test
	n, err := kube.StartNode(ctx, kube.Options{
		Dir: scratch(t), Version: version, Handler: handler, Index: firstIndex + len(nodes.by),
		Images: nodes.images, Debug: true,
	})
	if err == nil {
		if err = n.StartKubelet(ctx, ""); err != nil {
			err = errors.Join(err, n.Stop())
		}
	}
	if errors.Is(err, harness.ErrAbsent) {
		absent(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	if nodes.by == nil {
		nodes.by = map[string]*kube.Node{}
	}
	nodes.by[key] = n
	return n
}

// scratch makes a directory that lives until the package's tests are done.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "coco-k8s-")
	if err != nil {
		t.Fatal(err)
	}
	nodes.dirs = append(nodes.dirs, dir)
	return dir
}

// absent skips, or fails where everything is required, as in CI.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COCO_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// noLeaks fails the test if it leaves anything on the host that was not there when noLeaks was called.
func noLeaks(t *testing.T, n *kube.Node) {
	t.Helper()
	before, err := harness.TakeTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := harness.Leaks(context.Background(), before, 30*time.Second, n.NotOfPods)
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}
