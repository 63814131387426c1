// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestParseModules(t *testing.T) {
	const file = `first /m/first.ko
# boot
virtio-net /m/virtio_net.ko

# rootfs
overlay /m/overlay.ko
# a remark
erofs /m/erofs.ko
# lazy
dm_crypt /m/dm-crypt.ko
`
	got, err := ParseModules(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := []Module{
		{"first", "/m/first.ko", SectionBoot},
		{"virtio_net", "/m/virtio_net.ko", SectionBoot},
		{"overlay", "/m/overlay.ko", SectionRootfs},
		{"erofs", "/m/erofs.ko", SectionRootfs},
		{"dm_crypt", "/m/dm-crypt.ko", SectionLazy},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ParseModules (-want +got):\n%s", d)
	}
	for _, bad := range []string{"one", "a b c", "name relative"} {
		if _, err := ParseModules(strings.NewReader(bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParseModules(%q) = %v, want ErrInvalidArgument", bad, err)
		}
	}
}

func TestLoader(t *testing.T) {
	dir := t.TempDir()
	write := func(name, deps string) string {
		p := filepath.Join(dir, name+".ko")
		if err := os.WriteFile(p, []byte("\x7fELF\x00license=GPL\x00depends="+deps+"\x00name="+name+"\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	var order []string
	l := NewLoader([]Module{
		{"boot1", write("boot1", ""), SectionBoot},
		{"absent", write("absent", ""), SectionBoot},
		{"root1", write("root1", ""), SectionRootfs},
		{"bad", write("bad", ""), SectionRootfs},
		{"root2", write("root2", "root1"), SectionRootfs},
		{"leaf", write("leaf", "mid-dle,builtin"), SectionLazy},
		{"mid_dle", write("middle", "root1"), SectionLazy},
	})
	l.cmdline = "quiet mid-dle.scan=none mid_dle.on leaf.b=3 leafy.c=4 leaf"
	broken := errors.New("broken")
	var mu sync.Mutex
	l.insert = func(path, params string) error {
		mu.Lock()
		defer mu.Unlock()
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if name == "bad" {
			return broken
		}
		order = append(order, strings.TrimSpace(name+" "+params))
		return nil
	}
	if err := l.LoadBoot(func(name string) bool { return name == "absent" }); err != nil {
		t.Error(err)
	}
	if err := l.Load("leaf", "a=1", "b=2"); err != nil {
		t.Error(err)
	}
	if err := l.LoadRootfs(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "bad") {
		t.Errorf("LoadRootfs = %v, want the module that is broken", err)
	}
	if err := l.Wait(context.Background()); !errors.Is(err, broken) {
		t.Errorf("Wait = %v, want the same", err)
	}
	if err := l.Load("nonesuch"); !errdefs.IsNotFound(err) {
		t.Errorf("Load of what is not there = %v", err)
	}
	want := []string{"boot1", "root1", "middle scan=none on", "leaf a=1 b=2 b=3", "root2"} // each after what it depends on
	if d := cmp.Diff(want, order); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := NewLoader(nil).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v", err)
	}
}

func TestFindParam(t *testing.T) {
	for _, tc := range []struct {
		line, key, want string
		found           bool
	}{
		{"quiet agent.log=debug x=1", "agent.log", "debug", true},
		{"agent.log=debug agent.log=info", "agent.log", "info", true},
		{"quiet", "quiet", "", true},
		{"quiet", "agent.log", "", false},
		{"a=b=c", "a", "b=c", true},
	} {
		if got, found := findParam(tc.line, tc.key); got != tc.want || found != tc.found {
			t.Errorf("findParam(%q, %q) = %q, %v", tc.line, tc.key, got, found)
		}
	}
}

func TestBadClockAndEntropy(t *testing.T) {
	for _, err := range []error{SetClock(-1, 0), SetClock(1, 1e6), AddEntropy(nil), AddEntropy(make([]byte, maxSeed+1))} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v, want ErrInvalidArgument", err)
		}
	}
}

func FuzzParseModules(f *testing.F) {
	f.Add("# boot\na /b\n")
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		list, err := ParseModules(strings.NewReader(s))
		if err == nil && len(list) > maxModules {
			t.Errorf("%d modules", len(list))
		}
		depends([]byte(s))
		findParam(s, "x")
		moduleParams(s, "x")
	})
}
