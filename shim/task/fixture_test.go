// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/shimtest/hostpod"
)

// recorder is a containerd that notes events.
type recorder struct {
	react func(proto.Message) // what containerd's client does about an event, or nil

	mu  sync.Mutex
	got []string // guarded by mu
}

func (r *recorder) Send(m proto.Message) {
	if r.react != nil {
		r.react(m)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := strings.TrimPrefix(string(m.ProtoReflect().Descriptor().Name()), "Task")
	switch e := m.(type) {
	case *api.TaskExit:
		name += fmt.Sprintf(" %s %d", e.Id, e.ExitStatus)
	case *api.TaskExecStarted:
		name += " " + e.ExecId
	}
	r.got = append(r.got, name)
}
func (r *recorder) Flush(context.Context) error { return nil }
func (r *recorder) Close(context.Context) error { return nil }

func (r *recorder) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

// fixture is a service whose pods are host processes in the host's own root.
type fixture struct {
	*Service
	t      *testing.T
	events *recorder
	pod    *hostpod.Pod
	asked  PodRequest
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the test pod changes root directories")
	}
	f := &fixture{t: t, events: &recorder{}}
	f.Service = New(Config{
		Namespace: "ns", Events: f.events, Log: slog.New(slog.DiscardHandler),
		MakePod: func(_ context.Context, r PodRequest) (Pod, error) {
			f.asked = r
			p, err := hostpod.New()
			if err != nil {
				return nil, err
			}
			f.pod = p
			return PodOf(p), nil
		},
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return f
}

func (f *fixture) bundle(annotations map[string]string, args ...string) string {
	f.t.Helper()
	dir := f.t.TempDir()
	if err := os.Symlink("/", filepath.Join(dir, "rootfs")); err != nil {
		f.t.Fatal(err)
	}
	spec := specs.Spec{
		Annotations: annotations, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin"}},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

func (f *fixture) create(id string, args ...string) string {
	f.t.Helper()
	dir := f.bundle(nil, args...)
	if _, err := f.Create(f.t.Context(), &api.CreateTaskRequest{Id: id, Bundle: dir}); err != nil {
		f.t.Fatalf("Create(%s): %v", id, err)
	}
	return dir
}

func (f *fixture) start(id, execID string) {
	f.t.Helper()
	if _, err := f.Start(f.t.Context(), &api.StartRequest{Id: id, ExecId: execID}); err != nil {
		f.t.Fatalf("Start(%s, %s): %v", id, execID, err)
	}
}

func (f *fixture) exec(id, execID string, args ...string) {
	f.t.Helper()
	if _, err := f.Exec(f.t.Context(), &api.ExecProcessRequest{
		Id: id, ExecId: execID,
		Spec: processSpec(f.t, args...),
	}); err != nil {
		f.t.Fatalf("Exec(%s, %s): %v", id, execID, err)
	}
}

func processSpec(t *testing.T, args ...string) *anypb.Any {
	t.Helper()
	data, err := json.Marshal(specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
}

func (f *fixture) wait(id, execID string) uint32 {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	r, err := f.Wait(ctx, &api.WaitRequest{Id: id, ExecId: execID})
	if err != nil {
		f.t.Fatalf("Wait(%s, %s): %v", id, execID, err)
	}
	return r.ExitStatus
}

func (f *fixture) kill(id, execID string, sig unix.Signal) {
	f.t.Helper()
	if _, err := f.Kill(f.t.Context(), &api.KillRequest{Id: id, ExecId: execID, Signal: uint32(sig)}); err != nil {
		f.t.Fatalf("Kill(%s, %s): %v", id, execID, err)
	}
}

func (f *fixture) remove(id, execID string) *api.DeleteResponse {
	f.t.Helper()
	r, err := f.Delete(f.t.Context(), &api.DeleteRequest{Id: id, ExecId: execID})
	if err != nil {
		f.t.Fatalf("Delete(%s, %s): %v", id, execID, err)
	}
	return r
}

func (f *fixture) status(id, execID string) api.Status {
	f.t.Helper()
	r, err := f.State(f.t.Context(), &api.StateRequest{Id: id, ExecId: execID})
	if err != nil {
		f.t.Fatalf("State(%s, %s): %v", id, execID, err)
	}
	return r.Status
}

func (f *fixture) wantEvents(want ...string) {
	f.t.Helper()
	if diff := cmp.Diff(want, f.events.events()); diff != "" {
		f.t.Errorf("events (-want +got):\n%s", diff)
	}
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s = %v, want %v", what, err, class)
	}
}
