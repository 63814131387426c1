// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/virtcontainers/spec"
	"github.com/coco-shim/coco/virtcontainers/volume"
)

// names are the last parts of what is sent or removed.
func names(v *podVolume, list []string) string {
	var out []string
	for _, n := range list {
		out = append(out, strings.TrimPrefix(strings.TrimPrefix(n, v.guest), "/"))
	}
	return strings.Join(out, " ")
}

// The order of an update is kubelet's: what is new, the links that users see, ..data, removals; and
// only what has changed is sent.
func TestUpdatesAreInOrder(t *testing.T) {
	dir := t.TempDir()
	v := &podVolume{kind: volume.Updated, source: dir, guest: "/g/v", sent: map[string]entry{}}
	step := func() (sent, removed string) {
		t.Helper()
		now, err := survey(spec.Copy{Source: dir, Guest: v.guest}, 1, current(dir))
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, e := range inOrder(v, now) {
			list = append(list, e.guest)
			v.sent[e.guest] = e
		}
		gone := stale(v.sent, now)
		for _, g := range gone {
			for n := range v.sent {
				if n == g || strings.HasPrefix(n, g+"/") {
					delete(v.sent, n)
				}
			}
		}
		return names(v, list), names(v, gone)
	}
	check := func(what, wantSent, wantRemoved string) {
		t.Helper()
		sent, removed := step()
		if d := cmp.Diff([]string{wantSent, wantRemoved}, []string{sent, removed}); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	write(t, filepath.Join(dir, "..1/a"), []byte("1"), 0o644)
	write(t, filepath.Join(dir, "..1/b"), []byte("1"), 0o644)
	link := func(target, name string) {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, name))
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/a", "a")
	link("..data/b", "b")
	check("the first state", " ..1 ..1/a ..1/b a b ..data", "")
	check("no change", "", "")

	write(t, filepath.Join(dir, "..2/a"), []byte("2"), 0o644)
	write(t, filepath.Join(dir, "..2/c"), []byte("2"), 0o644)
	check("a state that is not the current one yet", "", "")
	link("..2", "..data")
	link("..data/c", "c")
	_ = os.Remove(filepath.Join(dir, "b"))
	check("an update", "..2 ..2/a ..2/c c ..data", "b ..1")
	if err := os.Chmod(filepath.Join(dir, "..2/a"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("a mode", "..2/a", "")
}

func TestTwoVolumesOfOneNameHaveTwoPlaces(t *testing.T) {
	vs := volumes{by: map[string]*podVolume{}}
	a, b := vs.get(volume.Memory, "/x/data"), vs.get(volume.Memory, "/y/data")
	if a.guest == b.guest || vs.get(volume.Memory, "/x/data") != a {
		t.Errorf("places %s and %s", a.guest, b.guest)
	}
	long := vs.get(volume.Disk, "/"+strings.Repeat("x/", 200))
	if n := len(filepath.Base(long.guest)); n > maxName {
		t.Errorf("a name of %d bytes", n)
	}
}
