// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	pb "github.com/coco-shim/coco/api/agent"
)

// besides are the requests that run beside those that change the guest, each for a reason.
var besides = strings.Fields(`
	StartContainer ExecProcess PauseContainer ResumeContainer SignalProcess TtyWinResize
	RemoveContainer DestroySandbox
	WaitProcess WriteStdin ReadStdout ReadStderr CloseStdin GetOOMEvent
	StatsContainer GetDiagnosticData GetGuestDetails GetMetrics GetVolumeStats ListInterfaces ListRoutes
	RemoveStaleVirtiofsShareMounts GetIPTables SetIPTables MemAgentMemcgSet MemAgentCompactSet MemHotplugByProbe
	AddSwap AddSwapPath ResizeVolume SetPolicy`)

// TestEveryRequestHasItsOrder: a request that is added has to be thought about.
func TestEveryRequestHasItsOrder(t *testing.T) {
	methods := pb.File_coco_agent_agent_proto.Services().ByName("AgentService").Methods()
	seen := 0
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		if oneAtATime[name] == slices.Contains(besides, name) {
			t.Errorf("%s is neither or both of one at a time and beside the others", name)
		}
		if oneAtATime[name] {
			seen++
		}
	}
	if seen != len(oneAtATime) {
		t.Errorf("%d of %d requests that run one at a time exist", seen, len(oneAtATime))
	}
}

// TestRequestsThatChangeTheGuestTakeTurns: while one runs, others that change something wait, are given up
// with their callers, and go on afterwards. Requests that read or wait run meanwhile.
func TestRequestsThatChangeTheGuestTakeTurns(t *testing.T) {
	f := newFixture(t)
	entered, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	call := func(ctx context.Context, name string, method func()) error {
		_, err := f.pass(ctx, func(any) error {
			return nil
		}, &ttrpc.UnaryServerInfo{FullMethod: "/grpc.AgentService/" + name},
			func(_ context.Context, decode func(any) error) (any, error) {
				if err := decode(&pb.CheckRequest{}); err != nil {
					return nil, err
				}
				method()
				return nil, nil
			})
		return err
	}
	go func() {
		left <- call(context.Background(), "CreateContainer", func() { close(entered); <-leave })
	}()
	<-entered
	for name := range oneAtATime {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := call(ctx, name, func() { t.Errorf("%s runs beside CreateContainer", name) })
		if !errors.Is(err, context.Canceled) && !errdefs.IsCanceled(err) && err == nil {
			t.Errorf("%s = %v", name, err)
		}
	}
	for _, name := range besides {
		ran := false
		if err := call(within(t), name, func() { ran = true }); err != nil || !ran {
			t.Errorf("%s waits: %v", name, err)
		}
	}
	waiting := make(chan error, 1)
	go func() { waiting <- call(within(t), "CopyFile", func() {}) }()
	close(leave)
	if err := errors.Join(<-left, <-waiting); err != nil {
		t.Error(err)
	}
}

// TestAnIDIsNotFreeBeforeEverythingIsGone: a container whose creation failed, and whose remains could not be
// removed, keeps its id until they are.
func TestAnIDIsNotFreeBeforeEverythingIsGone(t *testing.T) {
	f := newFixture(t)
	f.sandbox(t)
	boom := errors.New("boom")
	f.runner.fail["create"] = boom
	f.storage.failRemove = boom
	if err := f.create(t, "c1"); !errors.Is(err, boom) {
		t.Fatalf("create = %v", err)
	}
	f.runner.fail = map[string]error{}
	if err := f.create(t, "c1"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create while its storages are mounted = %v", err)
	}
	if err := f.remove(t, "c1"); !errors.Is(err, boom) {
		t.Errorf("remove = %v", err)
	}
	if err := f.create(t, "c1"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create after a removal that failed = %v", err)
	}
	f.storage.failRemove = nil
	if err := f.remove(t, "c1"); err != nil {
		t.Errorf("remove again = %v", err)
	}
	if left, _ := os.ReadDir(f.RunDir); len(left) != 0 || len(f.storage.mounts) != 0 {
		t.Errorf("left behind: %v, %v", left, f.storage.mounts)
	}
	if err := f.create(t, "c1"); err != nil {
		t.Errorf("create at last = %v", err)
	}
	// A bundle that nobody knows of belongs to somebody all the same.
	if err := os.Mkdir(f.RunDir+"/c2", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.create(t, "c2"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create over a bundle = %v", err)
	}
	if _, err := os.Stat(f.RunDir + "/c2"); err != nil {
		t.Errorf("the bundle: %v", err)
	}
	if _, err := f.container("c2"); !errdefs.IsNotFound(err) {
		t.Errorf("the container = %v", err)
	}
}
