// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
)

var discard = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func spec() *pb.Spec {
	return &pb.Spec{Process: &pb.Process{Args: []string{"x"}}, Root: &pb.Root{Path: "rootfs"}, Linux: &pb.Linux{}}
}

func (f *fixture) sandbox(t *testing.T) {
	t.Helper()
	if _, err := f.CreateSandbox(within(t), &pb.CreateSandboxRequest{
		SandboxId: "pod", Hostname: "pod",
		SandboxPidns: true,
	}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) create(t *testing.T, id string) error {
	t.Helper()
	_, err := f.CreateContainer(within(t), &pb.CreateContainerRequest{
		ContainerId: id, OCI: spec(),
		Storages: []*pb.Storage{{}},
	})
	return err
}

func (f *fixture) start(t *testing.T, id string) error {
	t.Helper()
	_, err := f.StartContainer(within(t), &pb.StartContainerRequest{ContainerId: id})
	return err
}

func (f *fixture) exec(t *testing.T, id, exec string) error {
	t.Helper()
	_, err := f.ExecProcess(within(t), &pb.ExecProcessRequest{
		ContainerId: id, ExecId: exec,
		Process: &pb.Process{Args: []string{"x"}},
	})
	return err
}

func (f *fixture) kill(t *testing.T, id, exec string, sig uint32) error {
	t.Helper()
	_, err := f.SignalProcess(within(t), &pb.SignalProcessRequest{ContainerId: id, ExecId: exec, Signal: sig})
	return err
}

func (f *fixture) wait(t *testing.T, id, exec string) (int32, error) {
	r, err := f.WaitProcess(within(t), &pb.WaitProcessRequest{ContainerId: id, ExecId: exec})
	return r.GetStatus(), err
}

func (f *fixture) remove(t *testing.T, id string) error {
	t.Helper()
	_, err := f.RemoveContainer(within(t), &pb.RemoveContainerRequest{ContainerId: id})
	return err
}

// TestEveryStateAndEvent walks the table: a pair that is not in it is refused and changes nothing.
func TestEveryStateAndEvent(t *testing.T) {
	events := []event{
		evCreated, evStart, evStarted, evStartFailed, evPause, evPaused, evPauseFailed, evResume, evResumed,
		evResumeFailed, evExited, evRemove, evRemoveFailed,
	}
	reached := map[state]bool{creating: true}
	for s := creating; s <= removing; s++ {
		for _, e := range events {
			c := &container{id: "c", state: s}
			err := c.to(e)
			next, ok := transitions[key{State: s, Event: e}]
			switch {
			case ok && (err != nil || c.state != next):
				t.Errorf("%s, %s: %s, %v; want %s", s, e, c.state, err, next)
			case !ok && (!errdefs.IsFailedPrecondition(err) || c.state != s):
				t.Errorf("%s, %s: %s, %v; want a refusal", s, e, c.state, err)
			}
			reached[c.state] = true
		}
	}
	if len(reached) != int(removing)+1 {
		t.Errorf("states that are reached: %v", reached)
	}
	// An exit is taken in every state: only a container that does not exist yet cannot exit.
	for s := created; s <= removing; s++ {
		if s == stopped {
			continue
		}
		if next := transitions[key{State: s, Event: evExited}]; next != stopped && next != removing {
			t.Errorf("an exit while %s leads to %s", s, next)
		}
	}
}

func TestLifecycle(t *testing.T) {
	f := newFixture(t)
	if err := f.create(t, "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create without sandbox = %v", err)
	}
	f.sandbox(t)
	if _, err := f.CreateSandbox(within(t), &pb.CreateSandboxRequest{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second sandbox = %v", err)
	}
	for _, step := range []struct {
		name  string
		err   error
		class func(error) bool
	}{
		{"start unknown", f.start(t, "c1"), errdefs.IsNotFound},
		{"create", f.create(t, "c1"), nil},
		{"create twice", f.create(t, "c1"), errdefs.IsAlreadyExists},
		{"exec before start", f.exec(t, "c1", "x"), errdefs.IsFailedPrecondition},
		{"start", f.start(t, "c1"), nil},
		{"start twice", f.start(t, "c1"), errdefs.IsFailedPrecondition},
		{"exec", f.exec(t, "c1", "x"), nil},
		{"exec twice", f.exec(t, "c1", "x"), errdefs.IsAlreadyExists},
		{"exec with the container's id", f.exec(t, "c1", "c1"), errdefs.IsAlreadyExists},
		{"exec with a bad id", f.exec(t, "c1", "../x"), errdefs.IsInvalidArgument},
		{"signal unknown exec", f.kill(t, "c1", "y", 15), errdefs.IsNotFound},
		{"signal 0", f.kill(t, "c1", "", 0), errdefs.IsInvalidArgument},
		{"signal exec", f.kill(t, "c1", "x", 15), nil},
	} {
		if step.class == nil && step.err != nil || step.class != nil && !step.class(step.err) {
			t.Errorf("%s = %v", step.name, step.err)
		}
	}
	if code, err := f.wait(t, "c1", "x"); code != 143 || err != nil {
		t.Errorf("wait exec = %d, %v", code, err)
	}
	go func() { _ = f.kill(t, "c1", "", 9) }()
	for _, id := range []string{"", "c1"} {
		if code, err := f.wait(t, "c1", id); code != 137 || err != nil {
			t.Errorf("wait init by %q = %d, %v", id, code, err)
		}
	}
	if err := f.exec(t, "c1", "z"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a stopped container = %v", err)
	}
	if err := f.remove(t, "c1"); err != nil {
		t.Error(err)
	}
	if _, err := f.wait(t, "c1", ""); !errdefs.IsNotFound(err) {
		t.Errorf("wait after removal = %v", err)
	}
	if left, _ := os.ReadDir(f.RunDir); len(left) != 0 || len(f.storage.mounts) != 0 || len(f.runner.containers) != 0 {
		t.Errorf("left behind: %v, %v, %v", left, f.storage.mounts, f.runner.containers)
	}
}

func TestManyWaiters(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	if err := errors.Join(f.create(t, "c1"), f.start(t, "c1"), f.exec(t, "c1", "x")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if code, err := f.wait(t, "c1", "x"); code != 5 || err != nil {
				t.Errorf("wait = %d, %v", code, err)
			}
		})
	}
	f.runner.get("c1").execs[0].end(5)
	wg.Wait()
	if code, err := f.wait(t, "c1", "x"); code != 5 || err != nil {
		t.Errorf("late wait = %d, %v", code, err)
	}
	if err := f.kill(t, "c1", "x", 9); err != nil {
		t.Errorf("signal to an exec that has ended = %v", err)
	}
}

func TestWaitIsGivenUpWithItsCaller(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	if err := f.create(t, "c1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.WaitProcess(ctx, &pb.WaitProcessRequest{ContainerId: "c1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("wait = %v", err)
	}
}

// TestFailuresLeaveNothing injects a failure at each step of creation.
func TestFailuresLeaveNothing(t *testing.T) {
	boom := errors.New("boom")
	for name, spoil := range map[string]func(*fixture){
		"storage": func(f *fixture) { f.storage.fail = boom },
		"runtime": func(f *fixture) { f.runner.fail["create"] = boom },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.sandbox(t)
			spoil(f)
			if err := f.create(t, "c1"); !errors.Is(err, boom) || !strings.Contains(err.Error(), "c1") {
				t.Errorf("create = %v", err)
			}
			if left, _ := os.ReadDir(f.RunDir); len(left) != 0 || len(f.storage.mounts) != 0 {
				t.Errorf("left behind: %v, %v", left, f.storage.mounts)
			}
			f.storage.fail, f.runner.fail = nil, map[string]error{}
			if err := f.create(t, "c1"); err != nil {
				t.Errorf("create again = %v", err)
			}
		})
	}
}

func TestACorruptLayerIsNamed(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	f.storage.bad = errors.New("layer abc at /x is corrupted")
	f.runner.fail["create"] = errors.New("input/output error")
	if err := f.create(t, "c1"); err == nil || !strings.Contains(err.Error(), "layer abc") {
		t.Errorf("create = %v, want the layer", err)
	}
}

func TestStartAndExecCanBeTriedAgain(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	if err := f.create(t, "c1"); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	f.runner.fail["start"], f.runner.fail["exec"] = boom, boom
	if err := f.start(t, "c1"); !errors.Is(err, boom) {
		t.Errorf("start = %v", err)
	}
	delete(f.runner.fail, "start")
	if err := f.start(t, "c1"); err != nil {
		t.Errorf("start again = %v", err)
	}
	if err := f.exec(t, "c1", "x"); !errors.Is(err, boom) {
		t.Errorf("exec = %v", err)
	}
	delete(f.runner.fail, "exec")
	if err := f.exec(t, "c1", "x"); err != nil {
		t.Errorf("exec again = %v", err)
	}
}

func TestRemovalGoesOnWhereItStopped(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	if err := errors.Join(f.create(t, "c1"), f.start(t, "c1")); err != nil {
		t.Fatal(err)
	}
	f.runner.fail["delete"] = errors.New("busy")
	if err := f.remove(t, "c1"); err == nil {
		t.Error("remove = nil")
	}
	if err := f.start(t, "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start after half a removal = %v", err)
	}
	delete(f.runner.fail, "delete")
	if err := f.remove(t, "c1"); err != nil {
		t.Errorf("remove again = %v", err)
	}
	if err := f.create(t, "c1"); err != nil {
		t.Errorf("create anew = %v", err)
	}
}

func TestDevicesMayChangeTheSpecification(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	_, err := f.CreateContainer(within(t), &pb.CreateContainerRequest{
		ContainerId: "c1", OCI: spec(), Devices: []*pb.Device{{ContainerPath: "/dev/x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := f.runner.get("c1").spec.Spec.Annotations["device"]; got != "/dev/x" {
		t.Errorf("what the storage wrote did not reach the runtime: %q", got)
	}
}

// TestARequestIsNotChanged: the handler gets the message that was checked, and does not change it.
func TestARequestIsNotChanged(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	sp := spec()
	sp.Process.Capabilities = &pb.LinuxCapabilities{Bounding: []string{"CAP_SYS_RAWIO", "CAP_CHOWN"}}
	sp.Linux.Sysctl = map[string]string{"net.a": "1"}
	sp.Annotations = map[string]string{"run.oci.x": "y"}
	create := &pb.CreateContainerRequest{ContainerId: "c1", OCI: sp, Devices: []*pb.Device{{ContainerPath: "/dev/x"}}}
	exec := &pb.ExecProcessRequest{ContainerId: "c1", ExecId: "x", Process: proto.CloneOf(sp.Process)}
	createWas, execWas := proto.CloneOf(create), proto.CloneOf(exec)
	if _, err := f.CreateContainer(within(t), create); err == nil {
		t.Fatal("a sysctl that no kernel has was set")
	}
	if err := errors.Join(f.create(t, "c1"), f.start(t, "c1")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ExecProcess(within(t), exec); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(create, createWas) || !proto.Equal(exec, execWas) {
		t.Errorf("changed:\n%v\n%v", create, exec)
	}
}

func TestSandboxEffects(t *testing.T) {
	f := newFixture(t)
	_, err := f.CreateSandbox(within(t), &pb.CreateSandboxRequest{
		Dns: []string{"nameserver 1.1.1.1"}, KernelModules: []*pb.KernelModule{{Name: "m"}}, Storages: []*pb.Storage{{}, {}},
	})
	if err != nil || !slices.Equal(f.network.dns, []string{"nameserver 1.1.1.1"}) ||
		!slices.Equal(f.modules.loaded, []string{"m"}) || f.storage.mounts[""] != 2 {
		t.Errorf("%v; dns %v, modules %v, mounts %v", err, f.network.dns, f.modules.loaded, f.storage.mounts)
	}
	if _, err := f.CreateContainer(within(t), &pb.CreateContainerRequest{
		ContainerId: "c1", OCI: spec(),
		SandboxPidns: true,
	}); err != nil || f.service.sandbox.ns["pid"] == "" {
		t.Errorf("shared process ids are made when they are asked for: %v, %v", err, f.service.sandbox.ns)
	}
	if _, err := f.CreateContainer(within(t), &pb.CreateContainerRequest{
		ContainerId: "c2", OCI: spec(),
		PidContainer: "c9",
	}); !errdefs.IsNotFound(err) {
		t.Errorf("process ids of a container that is not = %v", err)
	}
	if _, err := f.CreateContainer(within(t), &pb.CreateContainerRequest{
		ContainerId: "c2", OCI: spec(),
		PidContainer: "c1",
	}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("process ids of a container that does not run = %v", err)
	}
	if _, err := f.DestroySandbox(within(t), &pb.DestroySandboxRequest{}); err != nil {
		t.Error(err)
	}
	<-f.stopped
	if _, err := f.DestroySandbox(within(t), &pb.DestroySandboxRequest{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("destroy twice = %v", err)
	}
}

func TestOOMEvents(t *testing.T) {
	f := newFixture(t)
	f.oom.ch <- "c1"
	if e, err := f.GetOOMEvent(within(t), &pb.GetOOMEventRequest{}); err != nil || e.ContainerId != "c1" {
		t.Errorf("GetOOMEvent = %v, %v", e, err)
	}
	go f.end()
	if _, err := f.GetOOMEvent(within(t), &pb.GetOOMEventRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("GetOOMEvent at the end = %v, want ErrUnavailable", err)
	}
}

// TestCodes: the class of a handler's error becomes the protocol's code.
func TestCodes(t *testing.T) {
	f := newFixture(t)
	for _, tc := range []struct {
		err  error
		want func(error) bool
	}{
		{errdefs.ErrNotFound, errdefs.IsNotFound},
		{fmt.Errorf("x: %w", errdefs.ErrInvalidArgument), errdefs.IsInvalidArgument},
		{errors.Join(errors.New("a"), errdefs.ErrFailedPrecondition), errdefs.IsFailedPrecondition},
		{unix.EIO, errdefs.IsInternal},
		{errors.New("anything"), errdefs.IsInternal},
		{context.Canceled, errdefs.IsCanceled},
		{errdefs.ErrNotImplemented, errdefs.IsNotImplemented},
	} {
		_, err := f.pass(within(t), nil, &ttrpc.UnaryServerInfo{}, func(context.Context, func(any) error) (any, error) {
			return nil, tc.err
		})
		if !tc.want(errgrpc.ToNative(err)) {
			t.Errorf("%v became %v", tc.err, err)
		}
	}
}

func TestUnsupportedCallsSaySo(t *testing.T) {
	f := newFixture(t)
	ctx := within(t)
	_, e1 := f.SetPolicy(ctx, nil)
	_, e2 := f.ResizeVolume(ctx, nil)
	_, e3 := f.GetIPTables(ctx, nil)
	_, e4 := f.SetIPTables(ctx, nil)
	_, e5 := f.AddSwap(ctx, nil)
	_, e6 := f.AddSwapPath(ctx, nil)
	_, e7 := f.MemAgentMemcgSet(ctx, nil)
	_, e8 := f.MemAgentCompactSet(ctx, nil)
	_, e9 := f.MemHotplugByProbe(ctx, nil)
	_, e10 := f.RemoveStaleVirtiofsShareMounts(ctx, nil)
	for i, err := range []error{e1, e2, e3, e4, e5, e6, e7, e8, e9, e10} {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("call %d = %v", i, err)
		}
	}
}

// TestTheClockOfATEE: its host sets it before there is a sandbox, and not after.
func TestTheClockOfATEE(t *testing.T) {
	for _, tee := range []bool{false, true} {
		f := newFixture(t)
		f.service.Confidential = tee
		set := func() error {
			_, err := f.SetGuestDateTime(within(t), &pb.SetGuestDateTimeRequest{Sec: 1})
			return err
		}
		if err := set(); err != nil {
			t.Errorf("in a TEE %v, before the sandbox: %v", tee, err)
		}
		f.sandbox(t)
		if err := set(); errdefs.IsPermissionDenied(err) != tee {
			t.Errorf("in a TEE %v, with a sandbox: %v", tee, err)
		}
	}
}
