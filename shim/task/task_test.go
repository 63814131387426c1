// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/shim/bundle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAPodOfOneFromCreateToShutdown(t *testing.T) {
	f := newFixture(t)
	dir := f.create("c1", "/bin/sh", "-c", "exit 3")
	if f.asked.First == nil || f.asked.First.ID != "c1" {
		t.Errorf("pod request = %+v, want c1 as its first container", f.asked)
	}
	if s := f.status("c1", ""); s != api.Status_CREATED {
		t.Errorf("state after create = %v", s)
	}
	f.start("c1", "")
	if code := f.wait("c1", ""); code != 3 {
		t.Errorf("exit status = %d, want 3", code)
	}
	if s := f.status("c1", ""); s != api.Status_STOPPED {
		t.Errorf("state after exit = %v", s)
	}
	if e, ok := bundle.Dir(dir).Exit(); !ok || e.Status != 3 {
		t.Errorf("exit in the bundle = %+v, %v", e, ok)
	}
	if _, err := f.Shutdown(t.Context(), &api.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.Done():
		t.Fatal("shut down with a container")
	default:
	}
	if r := f.remove("c1", ""); r.ExitStatus != 3 || r.Pid == 0 {
		t.Errorf("Delete = %v", r)
	}
	select {
	case <-f.pod.Done():
	default:
		t.Error("the VM outlives its container")
	}
	if _, err := f.Shutdown(t.Context(), &api.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	<-f.Done()
	f.wantEvents("Create", "Start", "Exit c1 3", "Delete")
	_, err := f.Delete(t.Context(), &api.DeleteRequest{Id: "c1"})
	wantClass(t, "second Delete", err, errdefs.ErrNotFound)
}

func TestStartIsToldBeforeTheExitOfWhatEndsAtOnce(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	want := []string{"Create", "Start"}
	for i := range 40 {
		id := fmt.Sprint("x", i)
		f.exec("c1", id, "/bin/true")
		f.start("c1", id)
		if code := f.wait("c1", id); code != 0 {
			t.Errorf("%s exits %d", id, code)
		}
		f.remove("c1", id)
		want = append(want, "ExecAdded", "ExecStarted "+id, "Exit "+id+" 0")
	}
	f.wantEvents(want...)
}

// Docker deletes a container as soon as it hears of its exit. A delete that found it running would leave the VM.
func TestWhoHearsOfTheExitFindsTheProcessEnded(t *testing.T) {
	f := newFixture(t)
	saw := make(chan api.Status, 1)
	f.events.react = func(m proto.Message) {
		if _, ok := m.(*api.TaskExit); !ok {
			return
		}
		go func() {
			r, err := f.State(context.Background(), &api.StateRequest{Id: "c1"})
			if err != nil {
				t.Error(err)
			}
			saw <- r.GetStatus()
		}()
		select { // whoever asks now is answered after the end, or wrongly
		case s := <-saw:
			saw <- s
		case <-time.After(100 * time.Millisecond):
		}
	}
	f.create("c1", "/bin/true")
	f.start("c1", "")
	if s := <-saw; s != api.Status_STOPPED {
		t.Errorf("state on the exit event = %v, want stopped", s)
	}
	f.remove("c1", "")
}

// A client that has stopped waiting for its delete (Docker does after two seconds) never asks the shim to end.
func TestAShimWhoseDeleteNobodyWaitsForEnds(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/true")
	f.start("c1", "")
	f.wait("c1", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Delete(ctx, &api.DeleteRequest{Id: "c1"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.Done():
	default:
		t.Error("the shim stays, without a container")
	}
	select {
	case <-f.pod.Done():
	default:
		t.Error("the VM stays, without a container")
	}
	f.wantEvents("Create", "Start", "Exit c1 0", "Delete")
}

func TestTheInitsExitIsToldLast(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	f.exec("c1", "x1", "/bin/sh", "-c", "sleep 0.3")
	f.start("c1", "x1")
	f.kill("c1", "", unix.SIGKILL) // here the exec lives on: nothing confines it
	if code := f.wait("c1", ""); code != 137 {
		t.Errorf("exit status = %d, want 137", code)
	}
	f.wantEvents("Create", "Start", "ExecAdded", "ExecStarted x1", "Exit x1 0", "Exit c1 137")
}

func TestOutputIsDeliveredBeforeTheExit(t *testing.T) {
	f := newFixture(t)
	log := filepath.Join(t.TempDir(), "log")
	dir := f.bundle(nil, "/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done")
	if _, err := f.Create(t.Context(), &api.CreateTaskRequest{
		Id: "c1", Bundle: dir,
		Stdout: "file://" + log,
	}); err != nil {
		t.Fatal(err)
	}
	f.start("c1", "")
	f.wait("c1", "")
	if data, err := os.ReadFile(log); err != nil || strings.Count(string(data), "\n") != 3000 {
		t.Errorf("%d lines at the exit, %v, want 3000", strings.Count(string(data), "\n"), err)
	}
}

func TestKillBeforeStart(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.kill("c1", "", unix.SIGKILL)
	if code := f.wait("c1", ""); code != 137 {
		t.Errorf("exit status = %d, want 137", code)
	}
	_, err := f.Start(t.Context(), &api.StartRequest{Id: "c1"})
	wantClass(t, "Start after the exit", err, errdefs.ErrFailedPrecondition)
	_, err = f.Kill(t.Context(), &api.KillRequest{Id: "c1", Signal: 9})
	wantClass(t, "second Kill", err, errdefs.ErrNotFound)
	f.remove("c1", "")
	f.wantEvents("Create", "Exit c1 137", "Delete")
}

func TestDeleteOfWhatWasNeverStarted(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	if r := f.remove("c1", ""); r.ExitStatus != 137 {
		t.Errorf("Delete = %v", r)
	}
	f.wantEvents("Create", "Exit c1 137", "Delete")
}

func TestPauseResumeUpdateAndCounts(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	ctx := t.Context()
	if _, err := f.Pause(ctx, &api.PauseRequest{Id: "c1"}); err != nil || f.status("c1", "") != api.Status_PAUSED {
		t.Errorf("Pause = %v", err)
	}
	if _, err := f.Resume(ctx, &api.ResumeRequest{Id: "c1"}); err != nil ||
		f.status("c1", "") != api.Status_RUNNING {
		t.Errorf("Resume = %v", err)
	}
	res := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{}`)}
	if _, err := f.Update(ctx, &api.UpdateTaskRequest{Id: "c1", Resources: res}); err != nil {
		t.Error(err)
	}
	_, err := f.Update(ctx, &api.UpdateTaskRequest{Id: "c1", Resources: processSpec(t)})
	wantClass(t, "Update with a process", err, errdefs.ErrInvalidArgument)
	if r, err := f.Pids(ctx, &api.PidsRequest{Id: "c1"}); err != nil || len(r.Processes) != 1 ||
		int(r.Processes[0].Pid) != f.pod.PID() {
		t.Errorf("Pids = %v, %v", r, err)
	}
	if r, err := f.Connect(ctx, &api.ConnectRequest{Id: "c1"}); err != nil || int(r.TaskPid) != f.pod.PID() ||
		int(r.ShimPid) != os.Getpid() {
		t.Errorf("Connect = %v, %v", r, err)
	}
	_, err = f.Checkpoint(ctx, &api.CheckpointTaskRequest{Id: "c1"})
	wantClass(t, "Checkpoint", err, errdefs.ErrNotImplemented)
	_, err = f.ResizePty(ctx, &api.ResizePtyRequest{Id: "c1"})
	wantClass(t, "ResizePty without a terminal", err, errdefs.ErrFailedPrecondition)
	_, err = f.Delete(ctx, &api.DeleteRequest{Id: "c1"})
	wantClass(t, "Delete while it runs", err, errdefs.ErrFailedPrecondition)
	_, err = f.Start(ctx, &api.StartRequest{Id: "c1"})
	wantClass(t, "second Start", err, errdefs.ErrFailedPrecondition)
}

// Docker and nerdctl would show the host's processes that have the numbers of the guest's.
func TestEnginesThatUseTheHostsPSGetAnError(t *testing.T) {
	f := newFixture(t)
	dir := f.bundle(map[string]string{"nerdctl/namespace": "default"}, "/bin/sleep", "1000")
	if _, err := f.Create(t.Context(), &api.CreateTaskRequest{Id: "c1", Bundle: dir}); err != nil {
		t.Fatal(err)
	}
	f.start("c1", "")
	_, err := f.Pids(t.Context(), &api.PidsRequest{Id: "c1"})
	wantClass(t, "Pids", err, errdefs.ErrNotImplemented)
	if err != nil && !strings.Contains(err.Error(), "use exec CONTAINER ps") {
		t.Errorf("Pids: %v, which names no way out", err)
	}
}

func TestTheVMDies(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	f.exec("c1", "x1", "/bin/sleep", "1000")
	f.start("c1", "x1")
	if err := unix.Kill(f.pod.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := f.wait("c1", ""); code != 137 {
		t.Errorf("exit status = %d, want 137", code)
	}
	_, err := f.Exec(t.Context(), &api.ExecProcessRequest{Id: "c1", ExecId: "x2", Spec: processSpec(t, "/bin/true")})
	wantClass(t, "Exec in a stopped container", err, errdefs.ErrFailedPrecondition)
	f.remove("c1", "")
	f.wantEvents("Create", "Start", "ExecAdded", "ExecStarted x1", "Exit x1 137", "Exit c1 137", "Delete")
}

func TestACRIPod(t *testing.T) {
	const kind, id = contract.CRIContainerType, contract.CRISandboxID
	f := newFixture(t)
	ctx := t.Context()
	member := f.bundle(map[string]string{kind: "container", id: "p1"}, "/bin/sleep", "1000")
	_, err := f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: member})
	wantClass(t, "Create before the sandbox", err, errdefs.ErrFailedPrecondition)
	sandbox := f.bundle(map[string]string{kind: "sandbox", id: "p1"}, "/pause")
	if _, err := f.Create(ctx, &api.CreateTaskRequest{Id: "p1", Bundle: sandbox}); err != nil {
		t.Fatal(err)
	}
	if f.asked.First != nil {
		t.Error("a sandbox's pod has a first container")
	}
	f.start("p1", "")
	if _, err := f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: member}); err != nil {
		t.Fatal(err)
	}
	f.start("c1", "")
	other := f.bundle(map[string]string{kind: "container", id: "p2"}, "/bin/true")
	_, err = f.Create(ctx, &api.CreateTaskRequest{Id: "c2", Bundle: other})
	wantClass(t, "Create of another pod's container", err, errdefs.ErrFailedPrecondition)
	_, err = f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: member})
	wantClass(t, "second Create", err, errdefs.ErrAlreadyExists)
	_, err = f.Exec(ctx, &api.ExecProcessRequest{Id: "p1", ExecId: "x", Spec: processSpec(t, "/bin/true")})
	wantClass(t, "Exec in a sandbox", err, errdefs.ErrFailedPrecondition)

	f.kill("c1", "", unix.SIGKILL)
	f.wait("c1", "")
	f.remove("c1", "")
	select {
	case <-f.pod.Done():
		t.Fatal("the VM ended with one of its containers")
	default:
	}
	f.kill("p1", "", unix.SIGUSR1) // ignored, as by the pause process
	f.kill("p1", "", unix.SIGTERM)
	if code := f.wait("p1", ""); code != 0 {
		t.Errorf("sandbox exits %d on SIGTERM, want 0", code)
	}
	f.remove("p1", "")
	<-f.pod.Done()
	f.wantEvents("Create", "Start", "Create", "Start", "Exit c1 137", "Delete", "Exit p1 0", "Delete")
}

func TestAFailedCreateLeavesNothing(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	_, err := f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: t.TempDir()})
	wantClass(t, "Create without a spec", err, errdefs.ErrInvalidArgument)
	dir := f.bundle(nil, "/bin/true")
	_, err = f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: dir, Checkpoint: "/x"})
	wantClass(t, "Create from a checkpoint", err, errdefs.ErrNotImplemented)
	_, err = f.Create(ctx, &api.CreateTaskRequest{Id: "c1", Bundle: dir, Stdout: "/no/such/fifo"})
	if err == nil || f.pod != nil {
		t.Errorf("Create without its output = %v, pod made = %v", err, f.pod != nil)
	}
	_, err = f.Create(ctx, &api.CreateTaskRequest{
		Id: "c1", Bundle: dir,
		Rootfs: nil, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options"},
	})
	wantClass(t, "Create with runc's options", err, errdefs.ErrInvalidArgument)
	f.create("c1", "/bin/true") // the id is free
}

func TestAFailedExecCanBeDeleted(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	f.exec("c1", "x1", "/no/such")
	_, err := f.Start(t.Context(), &api.StartRequest{Id: "c1", ExecId: "x1"})
	wantClass(t, "Start of a missing program", err, errdefs.ErrInvalidArgument)
	if s, code := f.status("c1", "x1"), f.wait("c1", "x1"); s != api.Status_STOPPED || code != notStartedCode {
		t.Errorf("after a failed start it is %s, exit %d", s, code)
	}
	_, err = f.Kill(t.Context(), &api.KillRequest{Id: "c1", ExecId: "x1", Signal: 9})
	wantClass(t, "Kill after a failed start", err, errdefs.ErrNotFound)
	_, err = f.Exec(t.Context(), &api.ExecProcessRequest{Id: "c1", ExecId: "x1", Spec: processSpec(t, "/bin/true")})
	wantClass(t, "Exec with a used id", err, errdefs.ErrAlreadyExists)
	f.remove("c1", "x1")
	f.exec("c1", "x1", "/bin/true")
	f.remove("c1", "x1") // never started
	_, err = f.State(t.Context(), &api.StateRequest{Id: "c1", ExecId: "x1"})
	wantClass(t, "State of a deleted exec", err, errdefs.ErrNotFound)
}

func TestStopTellsTheExits(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.wantEvents("Create", "Start", "Exit c1 137")
	_, err := f.Create(t.Context(), &api.CreateTaskRequest{Id: "c2", Bundle: f.bundle(nil, "/bin/true")})
	wantClass(t, "Create while stopping", err, errdefs.ErrUnavailable)
}

func TestNothingGrowsOverManyExecs(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	fds := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	out := filepath.Join(t.TempDir(), "out")
	before := fds()
	for i := range 200 {
		id := fmt.Sprint("x", i)
		r := &api.ExecProcessRequest{Id: "c1", ExecId: id, Stdout: "file://" + out, Spec: processSpec(t, "/bin/true")}
		if _, err := f.Exec(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		f.start("c1", id)
		f.wait("c1", id)
		f.remove("c1", id)
	}
	if after := fds(); after > before+2 {
		t.Errorf("%d descriptors after 200 execs, %d before", after, before)
	}
}
