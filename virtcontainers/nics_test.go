// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/virtcontainers/state"
)

const (
	mac0, mac1, mac2 = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
	addr0, addr1     = "10.0.0.2/24", "10.1.0.2/24"
)

func addr(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// linkedPod is a pod whose namespace has an eth0, and whose VM takes two interfaces while it runs. It does not listen:
// tests say when it should look.
func linkedPod(t *testing.T, w *world) (*Pod, func() []string) {
	t.Helper()
	w.links, w.ports = newLinkTable(), 2
	w.links.AddVeth("eth0", mac0, 1500, addr(addr0))
	o := w.options("sleep")
	o.Spec.Linux.Namespaces[4].Path = w.file("netns", 0o600) // not the pod's own: the journal has to know
	p, _ := start(t, w, o)
	settled(t, p)
	return p, func() []string {
		var out []string
		_ = w.vm().network(func(g *guestNet) error { out = append(out, g.ifaces...); return nil })
		return out
	}
}

// settled waits until the pod has taken its first look.
func settled(t *testing.T, p *Pod) {
	t.Helper()
	if errs := p.m.NICs.Sync(t.Context()); len(errs) > 0 {
		t.Fatal(errs)
	}
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestInterfacesComeAndGo(t *testing.T) {
	w := newWorld(t)
	p, guest := linkedPod(t, w)
	want(t, "at the start", guest(), "eth0 "+mac0+" "+addr0)
	before := w.links.Leftovers()

	w.links.AddVeth("eth1", mac1, 9000, addr(addr1))
	settled(t, p)
	want(t, "after eth1 came", guest(), "eth0 "+mac0+" "+addr0, "eth1 "+mac1+" "+addr1)
	want(t, "the journal", journaled(t, w), "eth0 coco0_eth0", "eth1 coco0_eth1")

	w.links.AddAddr("eth1", addr("10.1.0.3/24"))
	settled(t, p)
	want(t, "after an address came", guest(), "eth0 "+mac0+" "+addr0, "eth1 "+mac1+" "+addr1+" 10.1.0.3/24")

	w.links.Remove("eth1")
	settled(t, p)
	want(t, "after eth1 left", guest(), "eth0 "+mac0+" "+addr0)
	want(t, "the journal", journaled(t, w), "eth0 coco0_eth0")
	want(t, "the namespace", w.links.Leftovers(), before...)
}

// An interface from boot stays in the VM without an address. A link gets it when nothing can be plugged in.
func TestAnInterfaceOfTheBootStaysToSpare(t *testing.T) {
	w := newWorld(t)
	p, guest := linkedPod(t, w)
	w.links.Remove("eth0")
	settled(t, p)
	want(t, "after eth0 left", guest(), "eth0 "+mac0)
	want(t, "the journal", journaled(t, w))
	w.links.AddVeth("lan", mac2, 1500, addr(addr1))
	settled(t, p)
	want(t, "with a free place", guest(), "eth0 "+mac0, "lan "+mac2+" "+addr1)
	w.links.Remove("lan")
	settled(t, p)
	w.ports = 0
	w.links.AddVeth("lan", mac2, 1500, addr(addr1))
	settled(t, p)
	want(t, "without one", guest(), "lan "+mac0+" "+addr1)
	want(t, "the journal", journaled(t, w), "lan coco0_eth0")
}

// journaled lists what a clean-up after a crash would take down.
func journaled(t *testing.T, w *world) []string {
	t.Helper()
	j, err := state.Load(filepath.Join(w.dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range j.Redirects {
		out = append(out, r.Link+" "+r.Tap)
	}
	return out
}

func TestAPodWithoutNetworkHasItsFirstInterfaceWhenItStarts(t *testing.T) {
	w := newWorld(t)
	w.links, w.ports = newLinkTable(), 2
	p, _ := start(t, w, w.options("sleep"))
	w.links.AddVeth("eth0", mac0, 1500, addr(addr0))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	_ = w.vm().network(func(g *guestNet) error { got = append(got, g.ifaces...); return nil })
	if len(got) != 1 || !strings.HasPrefix(got[0], "eth0 ") || !strings.HasSuffix(got[0], addr0) {
		t.Errorf("the guest has %q", got)
	}
}

func TestAStartFailsWithoutTheNetworkThatCameBeforeIt(t *testing.T) {
	w := newWorld(t)
	w.links = newLinkTable()
	p, _ := start(t, w, w.options("sleep"))
	w.links.AddVeth("eth0", mac0, 1500, addr(addr0))
	w.links.AddVeth("eth1", mac1, 1500, addr(addr1))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "interface eth1 came") {
		t.Errorf("Start() = %v, want an error that names eth1", err)
	}
}

// After any failure to add an interface the pod runs on unchanged, and no resource of the attempt stays.
func TestAnInterfaceThatFailsLeavesNothing(t *testing.T) {
	good := newWorld(t)
	p, _ := linkedPod(t, good)
	ops, calls := good.count(), good.links.Calls()
	good.links.AddVeth("eth1", mac1, 1500, addr(addr1))
	settled(t, p)
	ops, calls = good.count()-ops, good.links.Calls()-calls
	if ops < 2 || calls < 5 {
		t.Fatalf("%d operations and %d calls of netlink: the injection is broken", ops, calls)
	}
	fail := func(name string, inject func(*world)) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p, guest := linkedPod(t, w)
			before := w.links.Leftovers()
			w.links.AddVeth("eth1", mac1, 1500, addr(addr1))
			inject(w)
			errs := p.m.NICs.Sync(t.Context())
			if len(errs) != 1 || !errors.Is(errs[0], errInjected) && !strings.Contains(errs[0].Error(), "injected") ||
				!strings.Contains(errs[0].Error(), "eth1") {
				t.Errorf("errors = %v, want one that names eth1", errs)
			}
			want(t, "guest", guest(), "eth0 "+mac0+" "+addr0)
			want(t, "the namespace", w.links.Leftovers(), before...)
			want(t, "the journal", journaled(t, w), "eth0 coco0_eth0")
			if n := len(w.vm().nics); n != 0 {
				t.Errorf("%d interfaces are plugged in", n)
			}
			// It is not tried again until it is another one.
			n := w.count()
			if again := p.m.NICs.Sync(t.Context()); len(again) != 1 || w.count() != n {
				t.Errorf("a second look: %v, %d operations", again, w.count()-n)
			}
			w.links.AddAddr("eth1", addr("10.1.0.3/24"))
			settled(t, p)
			want(t, "guest", guest(), "eth0 "+mac0+" "+addr0, "eth1 "+mac1+" "+addr1+" 10.1.0.3/24")
		})
	}
	for n := 1; n <= ops; n++ {
		fail("operation "+string(rune('0'+n)), func(w *world) {
			w.mu.Lock()
			w.failAt = len(w.ops) + n
			w.mu.Unlock()
		})
	}
	for n := 1; n <= calls; n++ {
		fail("netlink call "+string(rune('0'+n)), func(w *world) { w.links.FailCall(n, errInjected, false) })
		fail("lost answer "+string(rune('0'+n)), func(w *world) { w.links.FailCall(n, errInjected, true) })
	}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestAPodListensAndSaysOnceWhatItCannotHave(t *testing.T) {
	w := newWorld(t)
	w.links = newLinkTable()
	w.links.AddVeth("eth0", mac0, 1500, addr(addr0))
	o := w.options("sleep")
	log := &logged{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	start(t, w, o)
	const warning = "interface eth1 came while the VM runs, and is not in it: plug network interface"
	w.links.AddVeth("eth1", mac1, 1500, addr(addr1)) // the VM has no place for it
	for range 3 {
		w.links.changed <- struct{}{}
	}
	w.links.AddAddr("eth0", addr("10.0.0.3/24"))
	w.links.changed <- struct{}{}
	until(t, func() bool {
		got := ""
		_ = w.vm().network(func(g *guestNet) error { got = strings.Join(g.ifaces, ","); return nil })
		return got == "eth0 "+mac0+" "+addr0+" 10.0.0.3/24"
	})
	if n := strings.Count(log.String(), warning); n != 1 {
		t.Errorf("the log has the warning %d times:\n%s", n, log)
	}
}

// The log names the parts of the pod's network namespace that the guest does not get.
func TestWhatTheGuestDoesNotGetIsLogged(t *testing.T) {
	w := newWorld(t)
	w.links = newLinkTable()
	w.links.AddVeth("eth0", mac0, 1500, addr(addr0))
	w.links.AddVeth("eth1", mac1, 1500, addr(addr1))
	w.links.SetDown("eth1")
	o := w.options("sleep")
	log := &logged{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	start(t, w, o)
	if want := `what="link eth1" why="is down"`; !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %s:\n%s", want, log)
	}
}

// until waits for what another goroutine does.
func until(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

// A guest that does not let go of an interface is asked again.
func TestAnInterfaceThatDoesNotGoIsAskedForAgain(t *testing.T) {
	w := newWorld(t)
	p, guest := linkedPod(t, w)
	w.links.AddVeth("eth1", mac1, 1500, addr(addr1))
	settled(t, p)
	w.links.Remove("eth1")
	w.mu.Lock()
	w.fail = "unplug nic"
	w.mu.Unlock()
	if errs := p.m.NICs.Sync(t.Context()); len(errs) != 1 ||
		!strings.Contains(errs[0].Error(), "interface eth1 has left") {
		t.Errorf("errors = %v", errs)
	}
	w.mu.Lock()
	w.fail = ""
	w.mu.Unlock()
	settled(t, p)
	want(t, "guest", guest(), "eth0 "+mac0+" "+addr0)
	if s, err := w.links.Snapshot(t.Context()); err != nil || len(s.Links) != 3 {
		t.Errorf("the namespace has %+v, %v; want lo, eth0 and its tap", s.Links, err)
	}
}
