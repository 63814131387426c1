// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestParseModules(t *testing.T) {
	const file = `first /m/first.ko
# boot
virtio-net /m/virtio_net.ko net-failover,failover

# rootfs
overlay /m/overlay.ko
# a remark
erofs /m/erofs.ko
# lazy
dm_crypt /m/dm-crypt.ko
# demand
tun /m/tun.ko.xz
`
	got, err := ParseModules(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := []Module{
		{"first", "/m/first.ko", SectionBoot, nil},
		{"virtio_net", "/m/virtio_net.ko", SectionBoot, []string{"net_failover", "failover"}},
		{"overlay", "/m/overlay.ko", SectionRootfs, nil},
		{"erofs", "/m/erofs.ko", SectionRootfs, nil},
		{"dm_crypt", "/m/dm-crypt.ko", SectionLazy, nil},
		{"tun", "/m/tun.ko.xz", SectionDemand, nil},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ParseModules (-want +got):\n%s", d)
	}
	for _, bad := range []string{"one", "a /b c d", "name relative"} {
		if _, err := ParseModules(strings.NewReader(bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParseModules(%q) = %v, want ErrInvalidArgument", bad, err)
		}
	}
}

var errBroken = errors.New("broken")

// recorder is a loader that notes what it would load; a module named bad is broken.
func recorder(cmdline string, mods ...Module) (*Loader, *[]string) {
	l, order := NewLoader(mods), new([]string)
	l.cmdline = cmdline
	var mu sync.Mutex
	l.insert = func(path, params string) error {
		mu.Lock()
		defer mu.Unlock()
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if name == "bad" {
			return errBroken
		}
		*order = append(*order, strings.TrimSpace(name+" "+params))
		return nil
	}
	return l, order
}

func mod(name string, s Section, deps ...string) Module {
	return Module{canonical(name), "/nonexistent/" + name + ".ko", s, deps}
}

func TestLoader(t *testing.T) {
	l, order := recorder("quiet mid-dle.scan=none mid_dle.on leaf.b=3 leafy.c=4 leaf "+contract.ParamModules+"=named,",
		mod("boot1", SectionBoot), mod("absent", SectionBoot),
		mod("root1", SectionRootfs), mod("bad", SectionRootfs), mod("root2", SectionRootfs, "root1"),
		mod("leaf", SectionLazy, "mid_dle", "builtin"), mod("mid-dle", SectionLazy, "root1"), mod("named", SectionDemand),
		mod("other", SectionDemand))
	if err := l.LoadBoot(func(name string) bool { return name == "absent" }); err != nil {
		t.Error(err)
	}
	if err := l.Load("leaf", "a=1", "b=2"); err != nil {
		t.Error(err)
	}
	if err := l.LoadRootfs(); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "bad") {
		t.Errorf("LoadRootfs = %v, want the module that is broken", err)
	}
	if err := l.Wait(context.Background()); !errors.Is(err, errBroken) {
		t.Errorf("Wait = %v, want the same", err)
	}
	if err := l.Load("nonesuch"); !errdefs.IsNotFound(err) {
		t.Errorf("Load of what is not there = %v", err)
	}
	// each after what it depends on
	want := []string{"boot1", "root1", "mid-dle scan=none on", "leaf a=1 b=2 b=3", "root2", "named"}
	if d := cmp.Diff(want, *order); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
}

func TestLoadingIsClosedAfterBoot(t *testing.T) {
	l, order := recorder(contract.ParamModules+"=tun",
		mod("root1", SectionRootfs), mod("lazy1", SectionLazy), mod("vsock", SectionLazy), mod("report1", SectionReport),
		mod("tun", SectionDemand), mod("veth", SectionDemand))
	l.CloseAfterBoot()
	locked := false
	l.closed.lock = func() error { locked = true; return nil }
	if err := l.LoadRootfs(); err != nil || !locked {
		t.Errorf("LoadRootfs = %v, locked %v", err, locked)
	}
	if want := []string{"root1", "tun", "lazy1", "report1"}; !cmp.Equal(want, *order) {
		t.Errorf("loaded %v, want %v", *order, want)
	}
	if err := errors.Join(l.Load("tun"), l.Load("lazy1"), l.Open()); err != nil {
		t.Errorf("what is loaded already: %v", err)
	}
	if err := l.Load("veth"); !errdefs.IsFailedPrecondition(err) ||
		!strings.Contains(err.Error(), contract.ParamModules+"=veth") {
		t.Errorf("Load after the end = %v", err)
	}
	if l, _ = recorder(""); l.closed.is() {
		t.Error("a loader is closed that nobody closed")
	}
	l.CloseAfterBoot()
	l.closed.lock = func() error { return errBroken }
	if err := errors.Join(l.LoadRootfs(), l.Wait(context.Background())); !errors.Is(err, errBroken) {
		t.Errorf("a guest that cannot close goes on: %v", err)
	}
}

func TestModprobeLoadsOnlyWhatIsForContainers(t *testing.T) {
	const aliases = "block-major-7-* loop\nchar-major-10-200 tun\ndevname:net/tun tun\nipt_MASQUERADE " +
		"xt_MASQUERADE\nlinux lazy1\n"
	for name, want := range map[string][]string{
		"tun": {"tun"}, "char-major-10-200": {"tun"}, "devname:net/tun": {"tun"}, "block-major-7-3": {"loop"},
		"block-major-8-3": nil,
		"ipt_MASQUERADE":  {"x_tables", "xt_MASQUERADE"}, "lazy1": nil, "linux": nil, "": nil, "net-pf-3": nil,
		"[": nil, "../tun": nil,
	} {
		l, order := recorder("", mod("lazy1", SectionLazy), mod("tun", SectionDemand), mod("loop", SectionDemand),
			mod("x_tables", SectionDemand), mod("xt_MASQUERADE", SectionDemand, "x_tables"))
		names, err := resolve(strings.NewReader(aliases), name)
		if err == nil {
			err = l.loadDemanded(names)
		}
		if (err == nil) != (want != nil) || !slices.Equal(*order, want) {
			t.Errorf("the kernel asks for %q: %v, loaded %v, want %v", name, err, *order, want)
		}
	}
}

func TestUserNamespacesAreClosed(t *testing.T) {
	for _, files := range [][]string{
		{"kernel/unprivileged_userns_clone", "user/max_user_namespaces"},
		{"user/max_user_namespaces"},
		nil,
	} {
		root := t.TempDir()
		for _, f := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, f), []byte("1"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := closeUserns(root); err != nil {
			t.Error(err)
		}
		for i, f := range files {
			if b, err := os.ReadFile(filepath.Join(root, f)); err != nil || (string(b) == "0") != (i == 0) {
				t.Errorf("with %v, %s is %q (%v)", files, f, b, err)
			}
		}
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
		_, _ = resolve(strings.NewReader(s), s)
		findParam(s, "x")
		moduleParams(s, "x")
	})
}

// A template has what a guest loads later, but for the one module that shows containers a device of no use.
func TestATemplateLoadsWhatComesLater(t *testing.T) {
	l, order := recorder("", mod("boot1", SectionBoot), mod("dm-crypt", SectionLazy),
		mod("virtio_net", SectionLazy, "dep"), mod("dep", SectionDemand), mod("vsock", SectionLazy),
		mod("other", SectionDemand))
	l.LoadLazy("virtio_net")
	if got := strings.Join(*order, " "); got != "dm-crypt" {
		t.Errorf("LoadLazy() has loaded %q", got)
	}
}
