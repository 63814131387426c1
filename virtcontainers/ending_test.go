// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/process"
)

// lie makes the guest answer nothing, or what cannot be, to some calls.
type lie struct {
	agent.AgentServiceService
	signal func(context.Context) error
	remove func(context.Context) error
	code   int32
	under  func(agent.AgentServiceService) agent.AgentServiceService
}

func (l *lie) SignalProcess(ctx context.Context, r *agent.SignalProcessRequest) (*emptypb.Empty, error) {
	if l.signal != nil {
		return &emptypb.Empty{}, l.signal(ctx)
	}
	return l.AgentServiceService.SignalProcess(ctx, r)
}

func (l *lie) RemoveContainer(ctx context.Context, r *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	if l.remove != nil {
		return &emptypb.Empty{}, l.remove(ctx)
	}
	return l.AgentServiceService.RemoveContainer(ctx, r)
}

func (l *lie) WaitProcess(ctx context.Context, r *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	res, err := l.AgentServiceService.WaitProcess(ctx, r)
	if err == nil && l.code != 0 {
		res.Status = l.code
	}
	return res, err
}

func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// The guest's word for SIGKILL was believed for ever, and a pod whose guest lied could not be removed.
func TestAKilledProcessEndsOrItsVMDoes(t *testing.T) {
	for name, signal := range map[string]func(context.Context) error{
		"the guest says yes":      func(context.Context) error { return nil },
		"the guest says nothing":  silent,
		"the guest says it ended": func(context.Context) error { return status.Error(codes.NotFound, "no such process") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.lies = &lie{signal: signal}
			o := w.options("sleep")
			o.Config.Runtime.StopTimeout = 100 * time.Millisecond
			p, _ := start(t, w, o)
			if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := proc(t, p, "c1", "").Kill(t.Context(), process.Sigkill, true); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("Kill() = %v", err)
			}
			<-p.Done()
			st := wait(t, p, "")
			if st.Code != 128+process.Sigkill ||
				!strings.Contains(st.Reason, "container c1 did not end within runtime.stop_timeout (100ms) of SIGKILL") {
				t.Errorf("exit = %+v, want 137 with the reason", st)
			}
			if err := p.Err(); err == nil || err.Error() != st.Reason {
				t.Errorf("the pod ended with %v", err)
			}
			if _, err := proc(t, p, "c1", "").Delete(t.Context()); err != nil {
				t.Errorf("Delete() = %v", err)
			}
		})
	}
}

// A guest that breaks the protocol ends its VM. A signal that finds it out, or comes before the exit is noticed, was
// answered as unavailable, and a removal by force stopped there.
func TestASignalToAGuestThatBrokeTheProtocol(t *testing.T) {
	w := newWorld(t)
	w.lies = &lie{signal: func(ctx context.Context) error {
		a := w.vm().agent
		a.mu.Lock()
		_, err := a.conn.Write([]byte{0, 0, 0, 0, 0, 0, 0x03, 0xe7, 2, 0}) // ttrpc: an answer to request 999
		a.mu.Unlock()
		return errors.Join(err, silent(ctx))
	}}
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := proc(t, p, "c1", "").Kill(t.Context(), process.Sigkill, true)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "broke the agent's protocol") {
		t.Errorf("Kill() = %v, want that the process has ended with its VM", err)
	}
	if st := wait(t, p, ""); st.Code != 128+process.Sigkill {
		t.Errorf("exit = %+v, want 137", st)
	}
}

// The signal ends the process, its exit ends the VM of the pod's only container, and the guest's answer to the signal
// is lost with the VM. The signal was delivered all the same.
func TestASignalThatEndsTheVMWithItsProcess(t *testing.T) {
	w := newWorld(t)
	w.lies = &lie{signal: func(ctx context.Context) error {
		_, err := w.vm().agent.SignalProcess(ctx, &agent.SignalProcessRequest{
			ContainerId: "c1", ExecId: "c1",
			Signal: process.Sigkill,
		})
		return errors.Join(err, silent(ctx))
	}}
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	go func() { killed <- proc(t, p, "c1", "").Kill(t.Context(), process.Sigkill, true) }()
	if st := wait(t, p, ""); st.Code != 128+process.Sigkill || st.Reason != "" {
		t.Errorf("exit = %+v, want the guest's 137", st)
	}
	if err := p.EndVM(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
}

func TestOtherSignalsAreTheGuestsOwn(t *testing.T) {
	w := newWorld(t)
	w.lies = &lie{signal: func(context.Context) error { return nil }}
	o := w.options("sleep")
	o.Config.Runtime.StopTimeout = 100 * time.Millisecond
	p, _ := start(t, w, o)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := proc(t, p, "c1", "").Kill(t.Context(), 15, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if st, err := proc(t, p, "c1", "").Wait(ctx); err == nil {
		t.Errorf("SIGTERM, which a process may ignore, ended it: %+v", st)
	}
}

func TestAnExitStatusIsOne(t *testing.T) {
	for _, code := range []int32{-1, 256, 1 << 30} {
		w := newWorld(t)
		w.lies = &lie{code: code}
		o := w.options("echo")
		o.First.Stdout, o.First.Stderr = false, false // which nobody would read
		p, _ := start(t, w, o)
		if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := wait(t, p, ""); st.Code != 255 || !strings.Contains(st.Reason, "which none is") {
			t.Errorf("told %d, exit = %+v", code, st)
		}
	}
}

func TestAGuestThatRemovesNothingLosesItsVM(t *testing.T) {
	w := newWorld(t)
	w.lies = &lie{remove: silent}
	p, _ := start(t, w, w.options("sleep"))
	c := ctr(t, p, "c1")
	for range deafRemovals {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := c.removeInGuest(ctx); err == nil {
			t.Error("it was removed")
		}
		cancel()
	}
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "removal of container c1 unanswered") {
		t.Errorf("the pod ended with %v", err)
	}
}

func TestAnAgentThatHangsLosesItsVM(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.Config.Runtime.HealthInterval, o.Config.Runtime.HealthMisses = 10*time.Millisecond, 3
	o.Config.Runtime.StopTimeout = 100 * time.Millisecond
	w.paused.Store(true) // as long as it is, the guest may take its time
	p, _ := start(t, w, o)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.vm().agent.hang.Store(true)
	w.paused.Store(false)
	<-p.Done()
	if st := wait(t, p, ""); st.Code != 128+process.Sigkill ||
		!strings.Contains(st.Reason, "its agent has not answered for 3 times 10ms") {
		t.Errorf("exit = %+v", st)
	}
}

// 203,000 events a second, of any container id, went to containerd.
func TestOOMEventsAreOfThisPodsContainersAndFew(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	now := time.Now()
	if p.believesOOM("c1", now) {
		t.Error("a container that has not started ran out of memory")
	}
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct {
		id    string
		after time.Duration
		want  bool
	}{
		{"container-of-another-pod/../x\n", 0, false},
		{"", 0, false},
		{"c1", 0, true},
		{"c1", 0, false},
		{"c1", 999 * time.Millisecond, false},
		{"c1", time.Second, true},
	} {
		if got := p.believesOOM(tc.id, now.Add(tc.after)); got != tc.want {
			t.Errorf("event %d, of %q after %s = %v, want %v", i, tc.id, tc.after, got, tc.want)
		}
	}
	if err := proc(t, p, "c1", "").Kill(t.Context(), process.Sigkill, true); err != nil {
		t.Fatal(err)
	}
	at := wait(t, p, "").At
	if !p.believesOOM("c1", at.Add(2*time.Second)) {
		t.Error("the reason of an exit that comes after it is lost")
	}
	if p.believesOOM("c1", at.Add(time.Minute)) {
		t.Error("a container that ended long ago ran out of memory")
	}
}

func TestAForgedOOMIsNotAskedForAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	told := make(chan string, 10)
	o.OnOOM = func(id string) { told <- id }
	p, _ := start(t, w, o)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	oom := w.vm().agent.oom
	oom <- "of another"
	oom <- "c1" // taken when the host asks again
	if got := <-told; got != "c1" {
		t.Errorf("told %q", got)
	}
}
