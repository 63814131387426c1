// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/layer"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/plan/rootfs"
)

// pulled is what the host sends for an image that the guest pulls.
func (g *guest) pulled(cid string) []*agent.Storage {
	g.t.Helper()
	ss, err := rootfs.Pulled(cid, "r.example/app@sha256:"+strings.Repeat("a", 64), rootfs.Upper{MiB: 4})
	if err != nil {
		g.t.Fatal(err)
	}
	return g.moved(ss)
}

// fakeImages are images that are there when they are taken. Fetch takes one and gives it up.
type fakeImages func() ([]layer.Pulled, error)

func (f fakeImages) Fetch(context.Context, string) error {
	layers, err := f()
	for _, l := range layers {
		err = errors.Join(err, l.File.Close())
	}
	return err
}

func (f fakeImages) Take(string) ([]layer.Pulled, error) { return f() }

// serve has the guest pull an image of layers of one file each, the topmost first. It counts the pulls.
func (g *guest) serve(names ...string) (pulls *int) {
	pulls = new(int)
	g.Images = fakeImages(func() (out []layer.Pulled, err error) {
		*pulls++
		for _, name := range names {
			p, file := g.layerFile(name, name+" pulled")
			f, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			out = append(out, layer.Pulled{File: f, Params: p})
		}
		return out, nil
	})
	return pulls
}

func TestAnImageThatTheGuestPulls(t *testing.T) {
	for _, names := range [][]string{{"top", "low"}, {"only"}} {
		g := newGuest(t)
		pulls := g.serve(names...)
		for _, cid := range []string{"c1", "c2"} {
			if err := g.Add(t.Context(), cid, g.pulled(cid)); err != nil {
				if strings.Contains(err.Error(), "/dev/loop") {
					t.Skipf("needs loop devices: %v", err)
				}
				t.Fatal(err)
			}
			if err := g.Fetch(t.Context(), g.pulled("again")); err != nil { // it is mounted: nothing is fetched
				t.Error(err)
			}
			for _, name := range names {
				if got := g.read(cid + "/rootfs/" + name); got != name+" pulled" {
					t.Errorf("%s: %s has %q", cid, name, got)
				}
			}
			if err := os.WriteFile(g.root+"/"+cid+"/rootfs/new", nil, 0o600); err != nil {
				t.Error(err)
			}
			if err := g.Remove(t.Context(), cid); err != nil {
				t.Error(err)
			}
		}
		if *pulls != 1 {
			t.Errorf("the image was pulled %d times for two containers", *pulls)
		}
	}
}

func TestPullsThatAreRefused(t *testing.T) {
	g := newGuest(t)
	err := g.Add(t.Context(), "c", g.pulled("c"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has no image that the guest pulls") {
		t.Errorf("without a policy: %v", err)
	}
	boom := errors.New("boom")
	g.Images = fakeImages(func() ([]layer.Pulled, error) { return nil, boom })
	if err := g.Fetch(t.Context(), g.pulled("c")); !errors.Is(err, boom) {
		t.Errorf("a pull that fails: %v", err)
	}
	if err := g.Add(t.Context(), "c", g.pulled("c")); !errors.Is(err, boom) {
		t.Errorf("an image that is not there: %v", err)
	}
	for what, change := range map[string]func(*agent.Storage){
		"a driver option": func(s *agent.Storage) { s.DriverOptions = []string{"proxy=http://evil"} },
		"an option":       func(s *agent.Storage) { s.Options = []string{"ro", "lowerdir=/"} },
		"writable":        func(s *agent.Storage) { s.Options = nil },
		"another type":    func(s *agent.Storage) { s.Fstype = "ext4" },
	} {
		ss := g.pulled("c")
		change(ss[0])
		if err := g.Add(t.Context(), "c", ss); err == nil || errors.Is(err, boom) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
