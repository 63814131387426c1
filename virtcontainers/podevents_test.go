// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/virtcontainers/process"
)

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	ctx := t.Context()
	if err := ctr(t, p, "c1").Pause(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Pause() of a created container = %v, want failed precondition", err)
	}
	if _, err := proc(t, p, "c1", "").Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ctr(t, p, "c1").Pause(ctx); err != nil {
		t.Errorf("Pause() = %v", err)
	}
	checkState(t, p, "", process.Paused)
	if err := ctr(t, p, "c1").Resume(ctx); err != nil {
		t.Errorf("Resume() = %v", err)
	}
	checkState(t, p, "", process.Running)
	if _, err := proc(t, p, "c1", "").Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete() of a running container = %v, want failed precondition", err)
	}
	if err := proc(t, p, "c1", "").Kill(ctx, 9, true); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if st := wait(t, p, ""); st.Code != 137 {
		t.Errorf("exit = %+v, want 137", st)
	}
}

func TestOOMEventsArePassedOn(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	got := make(chan string, 1)
	o.OnOOM = func(id string) { got <- id }
	p, _ := start(t, w, o)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.vm().agent.oom <- "c1"
	if id := <-got; id != "c1" {
		t.Errorf("OnOOM(%q), want c1", id)
	}
}

// TestAPolicyWithoutStatsIsNoFault of a pod, and worth one line of its log.
func TestAPolicyWithoutStatsIsNoFault(t *testing.T) {
	w := newWorld(t)
	w.noStats = true
	o, log := w.options("sleep"), &logged{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	start(t, w, o)
	until(t, func() bool { return strings.Contains(log.String(), "does not open stats") })
	if strings.Contains(log.String(), "level=WARN") {
		t.Errorf("the log has a warning: %s", log)
	}
}

func TestHooksRunInOrderWithTheState(t *testing.T) {
	w := newWorld(t)
	log := filepath.Join(t.TempDir(), "log")
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `read s; echo "` + name + ` $s" >> ` + log}}}
	}
	o := w.options("sleep")
	o.Spec.Hooks = &specs.Hooks{
		//lint:ignore SA1019 engines still use it
		Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"),
		Poststart: hook("poststart"), Poststop: hook("poststop"),
	}
	p, err := CreatePod(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.CreateContainer(t.Context(), *o.First); err != nil {
		t.Fatal(err)
	}
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(b)) {
		name, state, _ := strings.Cut(line, " ")
		got = append(got, name)
		if !strings.Contains(state, `"id":"c1"`) || !strings.Contains(state, `"pid":`) {
			t.Errorf("%s read %s, want id and pid", name, state)
		}
	}
	if diff := cmp.Diff([]string{"prestart", "createRuntime", "poststart", "poststop"}, got); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}
