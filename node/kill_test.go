// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/node/ctrd"
	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/txn"
)

const (
	prefix = "/opt/coco"
	config = "/etc/containerd/config.toml"
)

// fakeEngine has containerd's files below a root, and a daemon that is a file: the text that it read at its start.
type fakeEngine struct {
	root  string
	major int
	fail  bool // the daemon does not start with handlers
}

func (e *fakeEngine) Name() string { return "containerd" }
func (e *fakeEngine) How() string  { return "restart" }

func (e *fakeEngine) site() ctrd.Site {
	return ctrd.Site{Root: config, DropIn: "/etc/containerd/conf.d/coco.toml", Major: e.major}
}

func (e *fakeEngine) Plan(_ context.Context, h []engine.Handler) ([]engine.Edit, []string, error) {
	edits, err := ctrd.Plan(e.site(), engine.Tree{Root: e.root}, h, ctrd.Options{})
	return edits, nil, err
}

func (e *fakeEngine) Verify(context.Context) error { return nil }

func (e *fakeEngine) files() string {
	var all string
	for _, p := range []string{config, e.site().DropIn} {
		text, _ := os.ReadFile(filepath.Join(e.root, p))
		all += string(text)
	}
	return all
}

func (e *fakeEngine) daemon() string { return e.root + ".daemon" }

func (e *fakeEngine) Restart(context.Context) error {
	text := e.files()
	if e.fail && strings.Contains(text, "runtime_path") {
		return errors.New("it does not start")
	}
	return os.WriteFile(e.daemon(), []byte(text), 0o600)
}

// State returns the plain handlers and those with a hash that the text of the daemon has.
func (e *fakeEngine) State(context.Context) engine.State {
	text, _ := os.ReadFile(e.daemon())
	s := engine.State{Engine: e.Name(), Running: true, Handlers: []string{}}
	for line := range strings.Lines(string(text)) {
		_, name, ok := strings.Cut(strings.TrimSuffix(line, "]\n"), "containerd.runtimes.")
		if ok && !strings.Contains(name, ".") && strings.HasPrefix(name, "coco") {
			s.Handlers = append(s.Handlers, name)
		}
	}
	return s
}

// world is a fixture root with a node in it.
type world struct {
	root string
	eng  *fakeEngine
	pods []Pod
}

// fast is a directory in which a sync costs nothing.
func fast(t testing.TB) string {
	t.Helper()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		dir, err := os.MkdirTemp("/dev/shm", "coco-node-")
		if err == nil {
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		}
	}
	return t.TempDir()
}

func newWorld(t testing.TB, major int, text string) *world {
	t.Helper()
	w := &world{root: filepath.Join(fast(t), "root")}
	w.eng = &fakeEngine{root: w.root, major: major}
	for _, dir := range []string{"/opt", "/usr/local/bin", "/etc/containerd"} {
		must(t, os.MkdirAll(filepath.Join(w.root, dir), 0o755))
	}
	if text != "" {
		must(t, os.WriteFile(filepath.Join(w.root, config), []byte(text), 0o640))
	}
	must(t, w.eng.Restart(t.Context()))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) node(step func(op, path string) error) *Node {
	n := New(prefix, io.Discard)
	n.Disk.Root, n.Disk.Step = w.root, step
	n.Engines = []engine.Engine{w.eng}
	n.Pods = func() ([]Pod, error) { return w.pods, nil }
	return n
}

// state is all that is below the root, and what the daemon has read.
func (w *world) state(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var text []byte
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, lerr := os.Readlink(path)
			text, err = []byte(target), lerr
		case d.Type().IsRegular():
			text, err = os.ReadFile(path)
		}
		all[strings.TrimPrefix(path, w.root)] = fmt.Sprintf("%v %s", info.Mode(), text)
		return err
	}))
	daemon, err := os.ReadFile(w.eng.daemon())
	must(t, err)
	all["daemon"] = string(daemon)
	return all
}

// source makes a release.
func source(t testing.TB, content string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{
		Shim, CLI, OCI, "share/coco/guest/manifest.json", "share/coco/guest/vmlinux", "share/coco/configs/a.toml",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content+name), 0o644))
	}
	return dir
}

// stage is one of the commands, between two states.
type stage struct {
	name string
	run  func(ctx context.Context, n *Node) error
}

func stages(one, two string) []stage {
	install := func(from string) func(context.Context, *Node) error {
		return func(ctx context.Context, n *Node) error {
			_, err := n.Install(ctx, Options{Source: from, Release: from, Keep: 0})
			return err
		}
	}
	return []stage{
		{"install", install(one)},
		{"upgrade", install(two)},
		{"uninstall", func(ctx context.Context, n *Node) error {
			_, err := n.Uninstall(ctx, false)
			return err
		}},
	}
}

var errKilled = errors.New("killed")

// killAt fails the n-th step and all that come after: what a killed process does.
func killAt(n int) func(op, path string) error {
	return func(string, string) error {
		if n--; n < 0 {
			return errKilled
		}
		return nil
	}
}

const v2Text = "version = 2\n\n# others\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\n" +
	"  runtime_type = \"io.containerd.runc.v2\""

// history runs the stages and returns the state before each, the last one, and the number of steps of each.
func history(t *testing.T, w *world, all []stage) (states []map[string]string, steps []int) {
	t.Helper()
	states = append(states, w.state(t))
	for _, s := range all {
		count := 0
		must(t, s.run(t.Context(), w.node(func(string, string) error { count++; return nil })))
		states, steps = append(states, w.state(t)), append(steps, count)
	}
	if d := cmp.Diff(states[0], states[len(states)-1]); d != "" {
		t.Fatalf("after the last stage all is as before the first (-before +after):\n%s", d)
	}
	return states, steps
}

func isOneOf(t *testing.T, what string, got map[string]string, states ...map[string]string) {
	t.Helper()
	for _, s := range states {
		if maps.Equal(got, s) {
			return
		}
	}
	t.Fatalf("%s: neither the old state nor the new one; (-old +got):\n%s", what, cmp.Diff(states[0], got))
}

// A run stops at a step; the next one finds the old state or the new one, and gets to the new one.
func TestKilledAnywhere(t *testing.T) {
	const points = 300
	one, two := source(t, "one"), source(t, "two")
	all := stages(one, two)
	for _, major := range []int{1, 2} {
		states, steps := history(t, newWorld(t, major, v2Text), all)
		t.Logf("containerd %d: steps of install, upgrade, uninstall: %v", major, steps)
		rnd := rand.New(rand.NewPCG(1, uint64(major)))
		for range points / 2 {
			at := rnd.IntN(len(all))
			n := rnd.IntN(steps[at])
			what := fmt.Sprintf("containerd %d, %s killed at step %d of %d", major, all[at].name, n, steps[at])
			w := newWorld(t, major, v2Text)
			for _, s := range all[:at] {
				must(t, s.run(t.Context(), w.node(nil)))
			}
			isOneOf(t, "before", w.state(t), states[at])
			if err := all[at].run(t.Context(), w.node(killAt(n))); err == nil {
				t.Fatalf("%s: no error", what)
			}
			w.resume(t, what, all[at], states[at], states[at+1])
			must(t, os.RemoveAll(w.root))
		}
	}
}

// resume is what happens after a kill: the next run recovers, gets to the new state, and the one after that does
// nothing.
func (w *world) resume(t *testing.T, what string, s stage, old, want map[string]string) {
	t.Helper()
	n := w.node(nil)
	if err := n.recover(t.Context()); err != nil {
		t.Fatalf("%s: recover: %v", what, err)
	}
	isOneOf(t, what, w.state(t), old, want)
	if err := s.run(t.Context(), n); err != nil {
		t.Fatalf("%s: again: %v", what, err)
	}
	isOneOf(t, what+", and again", w.state(t), want)
	silent := w.node(func(op, path string) error { return fmt.Errorf("%s %s: a run without work", op, path) })
	var log strings.Builder
	silent.Log = &log
	if err := s.run(t.Context(), silent); err != nil || log.Len() > 0 {
		t.Fatalf("%s: a second run changes something: %v, %q", what, err, log.String())
	}
}

// The same with SIGKILL, in a process of its own.
func TestKilledForGood(t *testing.T) {
	one, two := source(t, "one"), source(t, "two")
	all := stages(one, two)
	states, steps := history(t, newWorld(t, 2, v2Text), all)
	for at, s := range all {
		for n := at; n < steps[at]; n += steps[at]/5 + 1 {
			w := newWorld(t, 2, v2Text)
			for _, s := range all[:at] {
				must(t, s.run(t.Context(), w.node(nil)))
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestTheVictim$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d %s %s", victimVar, w.root, at, n, one, two))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the victim ended otherwise: %v\n%s", err, out)
			}
			w.resume(t, fmt.Sprintf("%s killed at %d", s.name, n), s, states[at], states[at+1])
		}
	}
}

const victimVar = "COCO_NODE_VICTIM"

func TestTheVictim(t *testing.T) {
	f := strings.Fields(os.Getenv(victimVar))
	if len(f) != 5 {
		t.Skip("run by TestKilledForGood")
	}
	at, err := strconv.Atoi(f[1])
	must(t, err)
	n, err := strconv.Atoi(f[2])
	must(t, err)
	w := &world{root: f[0], eng: &fakeEngine{root: f[0], major: 2}}
	err = stages(f[3], f[4])[at].run(t.Context(), w.node(func(string, string) error {
		if n--; n < 0 {
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return nil
	}))
	t.Fatal("still alive", err)
}

// From a step on nothing can be written any more; removals and renames work.
func TestFullDisk(t *testing.T) {
	all := stages(source(t, "one"), source(t, "two"))
	states, steps := history(t, newWorld(t, 1, v2Text), all)
	for at, s := range all {
		for n := range steps[at] {
			w := newWorld(t, 1, v2Text)
			for _, s := range all[:at] {
				must(t, s.run(t.Context(), w.node(nil)))
			}
			left := n
			err := s.run(t.Context(), w.node(func(op, _ string) error {
				if left--; left < 0 && slices.Contains([]string{"create", "write", "copy", "mkdir", "symlink", "link"}, op) {
					return unix.ENOSPC
				}
				return nil
			}))
			what := fmt.Sprintf("%s, full at step %d: %v", s.name, n, err)
			want := states[at]
			if err == nil {
				want = states[at+1]
			}
			isOneOf(t, what, w.state(t), want) // without another run
			w.resume(t, what, s, states[at], states[at+1])
			must(t, os.RemoveAll(w.root))
		}
	}
}

func TestReadOnlyEtc(t *testing.T) {
	all := stages(source(t, "one"), source(t, "two"))
	states, _ := history(t, newWorld(t, 2, v2Text), all)
	for at, s := range all {
		w := newWorld(t, 2, v2Text)
		for _, s := range all[:at] {
			must(t, s.run(t.Context(), w.node(nil)))
		}
		err := s.run(t.Context(), w.node(func(_, path string) error {
			if strings.HasPrefix(path, "/etc/") {
				return unix.EROFS
			}
			return nil
		}))
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s on a read-only /etc: %v", s.name, err)
		}
		isOneOf(t, s.name+" on a read-only /etc", w.state(t), states[at])
	}
}

// The daemon does not come back with the new files: it gets the old ones.
func TestADaemonThatDoesNotStart(t *testing.T) {
	w := newWorld(t, 1, v2Text)
	before := w.state(t)
	w.eng.fail = true
	all := stages(source(t, "one"), source(t, "two"))
	if err := all[0].run(t.Context(), w.node(nil)); err == nil || !strings.Contains(err.Error(), "does not start") {
		t.Errorf("install = %v", err)
	}
	isOneOf(t, "after a failed restart", w.state(t), before)
	// And killed while that is undone.
	for n := range 200 {
		err := all[0].run(t.Context(), w.node(killAt(n)))
		if !errors.Is(err, errKilled) {
			break
		}
		if err := w.node(nil).recover(t.Context()); err != nil && !strings.Contains(err.Error(), "does not start") {
			t.Fatal(err)
		}
		isOneOf(t, fmt.Sprintf("killed at %d", n), w.state(t), before)
	}
}

func TestPodsKeepTheirVersion(t *testing.T) {
	w := newWorld(t, 2, v2Text)
	all := stages(source(t, "one"), source(t, "two"))
	must(t, all[0].run(t.Context(), w.node(nil)))
	r, err := w.node(nil).Installed()
	must(t, err)
	w.pods = []Pod{{ID: "web", Namespace: "k8s.io", PID: 77, Version: r.Current}}
	must(t, all[1].run(t.Context(), w.node(nil)))
	now, err := w.node(nil).Installed()
	must(t, err)
	if !slices.Equal(now.Versions, []string{r.Current, now.Current}) {
		t.Errorf("versions after the upgrade: %v, want %s kept", now.Versions, r.Current)
	}
	if h := w.eng.State(t.Context()).Handlers; !slices.Contains(h, "coco-snp-"+r.Current) || !slices.Contains(h, "coco") {
		t.Errorf("handlers %v", h)
	}
	_, err = w.node(nil).Uninstall(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "web (namespace k8s.io, shim 77, version "+r.Current) {
		t.Errorf("uninstall with a pod = %v", err)
	}
	// A pod that starts while coco is removed keeps its programs.
	n := w.node(nil)
	calls := 0
	n.Pods = func() ([]Pod, error) {
		if calls++; calls == 1 {
			return nil, nil
		}
		return w.pods, nil
	}
	_, err = n.Uninstall(t.Context(), false)
	if !errors.Is(err, txn.ErrInUse) {
		t.Errorf("uninstall while a pod starts = %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.root, versionDir(prefix, r.Current), Shim)); err != nil {
		t.Error(err)
	}
	w.pods = nil
	_, err = w.node(nil).Uninstall(t.Context(), false)
	must(t, err)
	if _, err := os.Stat(filepath.Join(w.root, prefix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", prefix, err)
	}
}
