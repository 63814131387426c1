// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/process"
)

// fakeFiles serves files of a world.
type fakeFiles world

func (f *fakeFiles) Begin(_ context.Context, netns, _ string) (hypervisor.Process, error) {
	if netns == "" {
		return nil, errors.New("begun without a network namespace")
	}
	return (*world)(f).fork()
}

func (f *fakeFiles) Serve(_ context.Context, proc hypervisor.Process, dir string) (boot.Files, *os.File, error) {
	w := (*world)(f)
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		return nil, nil, fmt.Errorf("the directory holds %v: %w", names, err)
	}
	if err := w.op("serve files"); err != nil {
		return nil, nil, err
	}
	socket, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	w.hold("files")
	w.server = proc
	return &fakeShare{w: w}, socket, nil
}

type fakeShare struct {
	w      *world
	closed bool
}

func (s *fakeShare) Share(source *os.File, name string, readOnly bool) error {
	if err := s.w.op("share files"); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.shared = append(s.w.shared, fmt.Sprint(filepath.Base(source.Name()), " ", readOnly))
	if strings.Contains(name, "/") {
		return fmt.Errorf("name %q", name)
	}
	return nil
}

func (s *fakeShare) Close() error {
	if !s.closed {
		s.closed = true
		s.w.free("files")
	}
	return nil
}

// live is a pod of one with these bind mounts beside /etc/hosts.
func live(w *world, mounts ...specs.Mount) Options {
	o := w.options("sleep")
	o.Config.Runtime.HostPath = "live"
	if err := os.MkdirAll(filepath.Join(w.dir, o.ID), 0o700); err != nil {
		w.t.Fatal(err)
	}
	o.Spec.Mounts = append(mounts, specs.Mount{
		Type: "bind", Source: w.file(o.ID+"/hosts", 0o644), Destination: "/etc/hosts",
	})
	return o
}

func TestLiveFilesAreSharedAsTheyAreMounted(t *testing.T) {
	w := newWorld(t)
	data := w.file("data", 0o644)
	p, _ := start(t, w, live(w,
		specs.Mount{Type: "bind", Source: data, Destination: "/rw"},
		specs.Mount{Type: "bind", Source: data, Destination: "/ro", Options: []string{"ro"}},
		specs.Mount{Type: "bind", Source: data, Destination: "/again", Options: []string{"rw"}}))
	if diff := cmp.Diff([]string{"data false", "data true"}, w.shared); diff != "" {
		t.Errorf("shared (-want +got):\n%s", diff)
	}
	a := w.vm().agent
	a.mu.Lock()
	req := a.created
	a.mu.Unlock()
	var fs []*agent.Storage
	for _, s := range req.GetStorages() {
		if s.GetDriver() == contract.DriverVirtioFS {
			fs = append(fs, s)
		}
	}
	if len(fs) != 1 || fs[0].GetSource() != w.vm().spec.HostFiles.Tag || !fs[0].GetShared() {
		t.Errorf("storages of virtio-fs: %v", fs)
	}
	sources := map[string]string{}
	for _, m := range req.GetOCI().GetMounts() {
		sources[m.GetDestination()] = m.GetSource()
	}
	if sources["/rw"] != sources["/again"] || sources["/rw"] == sources["/ro"] ||
		filepath.Dir(sources["/ro"]) != fs[0].GetMountPoint() {
		t.Errorf("mounts lead to %v", sources)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// inputs are those of the boot of a pod.
func inputs(t *testing.T, o Options) boot.Options {
	t.Helper()
	b, err := o.boot(&Pod{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOnlyVMsThatNeedItHaveADeviceForLiveFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		options func(*world) Options
		want    bool
	}{
		"a pod of one without mounts": {func(w *world) Options { return live(w) }, false},
		"a pod of one with a mount": {func(w *world) Options {
			return live(w, specs.Mount{Type: "bind", Source: w.file("data", 0o644), Destination: "/d"})
		}, true},
		"one whose mounts are copies": {func(w *world) Options {
			o := live(w, specs.Mount{
				Type: "bind", Source: w.file("data", 0o644), Destination: "/d", Options: []string{"ro"},
			})
			o.Config.Runtime.Binds = "read-only"
			return o
		}, false},
		"a pod of Kubernetes": {func(w *world) Options { o := live(w); o.First = nil; return o }, true},
		"one that is not configured so": {func(w *world) Options {
			o := live(w)
			o.First, o.Config.Runtime.HostPath = nil, "writable"
			return o
		}, false},
	} {
		if got, err := boot.NeedsFiles(inputs(t, tt.options(newWorld(t)))); got != tt.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tt.want)
		}
	}
	w := newWorld(t)
	o := live(w, specs.Mount{Type: "bind", Source: w.file("data", 0o644), Destination: "/d"})
	o.Host.Files = nil
	if _, err := CreatePod(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no server") {
		t.Errorf("without a server: %v", err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	w = newWorld(t)
	o = live(w, specs.Mount{Type: "bind", Source: "/proc/sys", Destination: "/d"})
	p, err := CreatePod(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.CreateContainer(t.Context(), *o.First); err == nil ||
		!strings.Contains(err.Error(), "view of the host's kernel") {
		t.Errorf("a share of /proc: %v", err)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// Without virtiofsd, guest processes that use a live file would block for ever: the VM ends with that reason.
func TestAPodEndsWithTheServerOfItsFiles(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, live(w, specs.Mount{Type: "bind", Source: w.file("data", 0o644), Destination: "/d"}))
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	st, err := proc(t, p, "c1", "").Wait(ctx)
	if err != nil || st.Code != 128+process.Sigkill || !strings.Contains(st.Reason, "virtiofsd") ||
		!strings.Contains(st.Reason, "killed") {
		t.Errorf("Wait() = %+v, %v", st, err)
	}
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "virtiofsd") {
		t.Errorf("Err() = %v", err)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if !slices.Contains(w.ops, "share files") {
		t.Error("nothing was shared")
	}
}
