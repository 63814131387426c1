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

// serve has the guest pull an image of layers of one file each, the topmost first. It counts the pulls.
func (g *guest) serve(names ...string) (pulls *int) {
	pulls = new(int)
	g.Pull = func(context.Context, string) (out []PulledLayer, err error) {
		*pulls++
		for _, name := range names {
			p, file := g.layerFile(name, name+" pulled")
			f, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			out = append(out, PulledLayer{f, p})
		}
		return out, nil
	}
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
	g.Pull = func(context.Context, string) ([]PulledLayer, error) { return nil, boom }
	if err := g.Add(t.Context(), "c", g.pulled("c")); !errors.Is(err, boom) {
		t.Errorf("a pull that fails: %v", err)
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
