// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start makes a pod of one with its container created, and checks at the end that nothing is left.
func start(t *testing.T, w *world, o Options) (*Pod, stream.Streams) {
	t.Helper()
	p, err := CreatePod(t.Context(), o)
	if err != nil {
		t.Fatalf("CreatePod() = %v", err)
	}
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if err := p.Shutdown(context.Background()); err != nil {
			t.Errorf("second Shutdown() = %v", err)
		}
		if left := w.left(); len(left) > 0 {
			t.Errorf("left after Shutdown: %q", left)
		}
	})
	if o.First == nil {
		return p, stream.Streams{}
	}
	_, s, err := p.CreateContainer(t.Context(), *o.First)
	if err != nil {
		t.Fatalf("CreateContainer() = %v", err)
	}
	return p, s
}

// ctr is the handle of a container.
func ctr(t *testing.T, p *Pod, id string) *Container {
	t.Helper()
	c, err := p.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// proc is the handle of a container's first process, or of an exec.
func proc(t *testing.T, p *Pod, id, exec string) *process.Process {
	t.Helper()
	c := ctr(t, p, id)
	if exec == "" {
		return c.Init()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	pr := c.execs[exec]
	if pr == nil {
		t.Fatalf("container %s has no process %s", id, exec)
	}
	return pr
}

func wait(t *testing.T, p *Pod, exec string) process.ExitStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	st, err := proc(t, p, "c1", exec).Wait(ctx)
	if err != nil {
		t.Fatalf("Wait(%q) = %v", exec, err)
	}
	return st
}

func checkState(t *testing.T, p *Pod, exec string, want process.State) {
	t.Helper()
	if got, _ := proc(t, p, "c1", exec).State(); got != want {
		t.Errorf("State(%q) = %v, want %v", exec, got, want)
	}
}

func TestAContainerRunsFromCreateToDelete(t *testing.T) {
	w := newWorld(t)
	p, s := start(t, w, w.options("cat"))
	checkState(t, p, "", process.Created)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatalf("Start() = %v", err)
	}
	checkState(t, p, "", process.Running)
	if _, err := io.WriteString(s.Stdin, "through the guest"); err != nil {
		t.Fatal(err)
	}
	if err := s.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(s.Stdout)
	if err != nil || string(out) != "through the guest" {
		t.Errorf("stdout = %q, %v, want what went in", out, err)
	}
	if out, err := io.ReadAll(s.Stderr); err != nil || len(out) != 0 {
		t.Errorf("stderr = %q, %v, want nothing", out, err)
	}
	if st := wait(t, p, ""); st.Code != 0 || st.Reason != "" || st.At.IsZero() {
		t.Errorf("exit = %+v, want 0", st)
	}
	checkState(t, p, "", process.Stopped)
	if _, err := ctr(t, p, "c1").Exec(ExecRequest{
		ID:      "late",
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
	}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Exec() in a stopped container = %v, want failed precondition", err)
	}
	if err := proc(t, p, "c1", "").Kill(t.Context(), 15, false); !errdefs.IsNotFound(err) {
		t.Errorf("Kill() of a stopped container = %v, want not found", err)
	}
	if _, err := proc(t, p, "c1", "").Delete(t.Context()); err != nil {
		t.Errorf("Delete() = %v", err)
	}
	if _, err := p.Container("c1"); !errdefs.IsNotFound(err) {
		t.Errorf("Container() after Delete = %v, want not found", err)
	}
}

func TestTheEndOfAPodTidiesTheLayers(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff([]string{"[]"}, w.tidied); diff != "" {
		t.Errorf("what was held when the layers were tidied (-want +got):\n%s", diff)
	}
}

func TestASignalForAllIsSentAsOne(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := ctr(t, p, "c1").Exec(ExecRequest{
		ID:      "e1",
		Process: &specs.Process{Args: []string{"sleep"}, Cwd: "/"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := proc(t, p, "c1", "e1").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	const harmless = uint32(unix.SIGWINCH)
	for _, k := range []struct {
		exec string
		all  bool
	}{{"", true}, {"", false}, {"e1", true}} {
		if err := proc(t, p, "c1", k.exec).Kill(t.Context(), harmless, k.all); err != nil {
			t.Error(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	want := []string{`28 to "", all true`, `28 to "", all false`, `28 to "e1", all false`} // an exec is one process
	if diff := cmp.Diff(want, w.signals); diff != "" {
		t.Errorf("the agent was asked for (-want +got):\n%s", diff)
	}
}

func TestAPodWhoseVMWasEndedKeepsItsExitsAndItsHostSideUntilShutdown(t *testing.T) {
	w := newWorld(t)
	p, s := start(t, w, w.options("cat"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(s.Stdout); err != nil || len(out) != 0 {
		t.Fatalf("stdout = %q, %v", out, err)
	}
	wait(t, p, "")
	for range 2 {
		if err := p.EndVM(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Err(); err != nil {
		t.Errorf("the pod has died of %v", err)
	}
	select {
	case <-w.vm().Done():
	default:
		t.Error("the VM runs")
	}
	if st := wait(t, p, ""); st.Code != 0 || st.Reason != "" {
		t.Errorf("exit = %+v, want 0", st)
	}
	if len(w.left()) == 0 {
		t.Error("nothing is held any more: hooks and journal belong to the end of the container")
	}
	if _, err := proc(t, p, "c1", "").Delete(t.Context()); err != nil {
		t.Errorf("Delete() = %v", err)
	}
}

func TestReadyLayersAreThereFromBootAndSlowOnesArePluggedLater(t *testing.T) {
	w := newWorld(t)
	w.holdUntil("make netns", "open layers")
	start(t, w, w.options("sleep"))
	if n := len(w.vm().spec.Blocks); n != 3 {
		t.Errorf("the VM booted with %d blocks, want 2 and the writable layer's", n)
	}

	slow := newWorld(t)
	gate := make(chan string)
	slow.slow["layers"] = gate
	o := slow.options("sleep")
	sp, err := CreatePod(t.Context(), o)
	if err != nil {
		t.Fatalf("CreatePod() waits for its layers: %v", err)
	}
	if n := len(slow.vm().spec.Blocks); n != 1 {
		t.Errorf("the VM booted with %d blocks, want only the writable layer's", n)
	}
	close(gate)
	if _, _, err := sp.CreateContainer(t.Context(), *o.First); err != nil {
		t.Errorf("CreateContainer() = %v", err)
	}
	if n := len(slow.vm().plugged()); n != 3 {
		t.Errorf("%d blocks in the VM, want 2 and the writable layer's", n)
	}
	if err := sp.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := slow.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestASharedLayerIsPluggedOnceAndGoesWithItsLastContainer(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.First = nil
	p, _ := start(t, w, o)
	req := func(id string) ContainerRequest {
		return ContainerRequest{ID: id, Bundle: t.TempDir(), Spec: newSpec()}
	}
	for _, id := range []string{"c1", "c2"} {
		if _, _, err := p.CreateContainer(t.Context(), req(id)); err != nil {
			t.Fatalf("CreateContainer(%s) = %v", id, err)
		}
	}
	if _, _, err := p.CreateContainer(t.Context(), req("c1")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("CreateContainer() of a known id = %v, want already exists", err)
	}
	for i, id := range []string{"c1", "c2"} {
		if n, want := len(w.vm().plugged()), 4-i; n != want { // two layers, and what each container writes to
			t.Errorf("%d blocks before Delete(%s), want %d", n, id, want)
		}
		if _, err := proc(t, p, id, "").Delete(t.Context()); err != nil {
			t.Errorf("Delete(%s) = %v", id, err)
		}
	}
	if n := len(w.vm().plugged()); n != 0 {
		t.Errorf("%d blocks after the last Delete, want 0", n)
	}
}

func TestExecs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rpc     bool
		args    []string
		kill    uint32
		want    string
		code    uint32
		wantErr error
	}{
		{name: "prints", args: []string{"echo", "hi"}, want: "hi\n"},
		{name: "prints without byte streams", rpc: true, args: []string{"echo", "hi"}, want: "hi\n"},
		{name: "fails", args: []string{"false"}, code: 1},
		{name: "is killed", args: []string{"sleep"}, kill: 15, code: 143},
		{name: "does not exist", args: []string{"missing"}, wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.noStreams = tt.rpc
			p, _ := start(t, w, w.options("sleep"))
			if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			req := ExecRequest{
				ID: "e1", Process: &specs.Process{Args: tt.args, Cwd: "/"},
				Stdout: true, Stderr: true,
			}
			if _, err := ctr(t, p, "c1").Exec(req); err != nil {
				t.Fatalf("Exec() = %v", err)
			}
			if _, err := ctr(t, p, "c1").Exec(req); !errdefs.IsAlreadyExists(err) {
				t.Errorf("second Exec() = %v, want already exists", err)
			}
			checkState(t, p, "e1", process.Created)
			s, err := proc(t, p, "c1", "e1").Start(t.Context())
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("Start() = %v, want %v", err, tt.wantErr)
			}
			if err != nil {
				checkState(t, p, "e1", process.Stopped)
				if _, err := proc(t, p, "c1", "e1").Delete(t.Context()); err != nil {
					t.Errorf("Delete() = %v", err)
				}
				return
			}
			if tt.kill != 0 {
				if err := proc(t, p, "c1", "e1").Kill(t.Context(), tt.kill, false); err != nil {
					t.Errorf("Kill() = %v", err)
				}
			}
			out, err := io.ReadAll(s.Stdout)
			if err != nil || string(out) != tt.want {
				t.Errorf("stdout = %q, %v, want %q", out, err, tt.want)
			}
			if _, err := io.ReadAll(s.Stderr); err != nil {
				t.Error(err)
			}
			if st := wait(t, p, "e1"); st.Code != tt.code {
				t.Errorf("exit = %+v, want %d", st, tt.code)
			}
			if st, err := proc(t, p, "c1", "e1").Delete(t.Context()); err != nil || st.Code != tt.code {
				t.Errorf("Delete() = %+v, %v", st, err)
			}
			checkState(t, p, "", process.Running)
		})
	}
}

func TestAnOutputThatNobodyWantsBlocksNobody(t *testing.T) {
	for _, rpc := range []bool{false, true} {
		w := newWorld(t)
		w.noStreams = rpc
		o := w.options("spam")
		o.First.Stdin, o.First.Stdout, o.First.Stderr = false, false, false
		p, s := start(t, w, o)
		if s != (stream.Streams{}) {
			t.Errorf("streams that nobody asked for: %+v", s)
		}
		if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := wait(t, p, ""); st.Code != 0 || st.Reason != "" {
			t.Errorf("exit = %+v, want 0", st)
		}
	}
}

func TestExitIsToldAfterTheOutput(t *testing.T) {
	w := newWorld(t)
	p, s := start(t, w, w.options("echo", "last words"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if st, err := proc(t, p, "c1", "").Wait(ctx); err == nil {
		t.Errorf("Wait() = %+v before the output was read", st)
	}
	if out, err := io.ReadAll(s.Stdout); err != nil || string(out) != "last words\n" {
		t.Errorf("stdout = %q, %v", out, err)
	}
	if _, err := io.ReadAll(s.Stderr); err != nil {
		t.Error(err)
	}
	if st := wait(t, p, ""); st.Code != 0 {
		t.Errorf("exit = %+v", st)
	}
}

func TestTheVMsDeathEndsEveryProcessWithItsReason(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := ctr(t, p, "c1").Exec(ExecRequest{
		ID:      "e1",
		Process: &specs.Process{Args: []string{"sleep"}, Cwd: "/"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := proc(t, p, "c1", "e1").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.vm().die(&hypervisor.DeadError{
		VM: "c1", Phase: hypervisor.PhaseRun, Reason: "VMM ended: signal: killed",
		Console: []string{"Kernel panic"},
	})
	for _, exec := range []string{"", "e1"} {
		st := wait(t, p, exec)
		if st.Code != 137 || !strings.Contains(st.Reason, "signal: killed") || !strings.Contains(st.Reason, "Kernel panic") {
			t.Errorf("exit of %q = %+v, want 137 with the VM's reason", exec, st)
		}
	}
	<-p.Done()
	var dead *hypervisor.DeadError
	if !errors.As(p.Err(), &dead) {
		t.Errorf("Err() = %v, want a DeadError", p.Err())
	}
	if _, err := ctr(t, p, "c1").Stats(t.Context()); !errdefs.IsUnavailable(err) || !errors.As(err, &dead) {
		t.Errorf("Stats() of a dead VM = %v, want unavailable with the reason", err)
	}
}

func TestAnAgentThatLeavesEndsTheVM(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the VM's grace")
	}
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	w.vm().agent.crash()
	select {
	case <-p.Done():
	case <-time.After(2 * guest.LostVM):
		t.Fatal("the VM runs on without its agent")
	}
	if st := wait(t, p, ""); st.Code != 137 {
		t.Errorf("exit = %+v, want 137", st)
	}
}
