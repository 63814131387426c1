// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a containerd that can be away and that notes what it takes.
type daemon struct {
	mu   sync.Mutex
	away bool
	bad  string // a topic that is refused for good
	got  []string
}

func (d *daemon) Forward(_ context.Context, e *api.Envelope) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return errdefs.ErrUnavailable
	}
	if e.Topic == d.bad {
		return permanent{errors.New("not this one")}
	}
	var exit api.TaskExit
	if e.Event.TypeUrl == "containerd.events.TaskExit" && proto.Unmarshal(e.Event.Value, &exit) == nil {
		d.got = append(d.got, e.Topic+" "+exit.Id)
		return nil
	}
	d.got = append(d.got, e.Topic)
	return nil
}

func (d *daemon) Close() error { return nil }

func (d *daemon) dial(context.Context) (forwarder, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, errdefs.ErrUnavailable
	}
	return d, nil
}

func (d *daemon) set(f func(*daemon)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

func TestOrderIsKeptWhileTheDaemonIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{}
		p := newPublisher("ns", slog.New(slog.DiscardHandler), d.dial)
		p.Send(&api.TaskCreate{})
		synctest.Wait()
		d.set(func(d *daemon) { d.away = true })
		p.Send(&api.TaskStart{})
		p.Send(&api.TaskExit{Id: "c1"})
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush while the daemon is away = %v, want a deadline", err)
		}
		d.set(func(d *daemon) { d.away = false })
		p.Send(&api.TaskDelete{})
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"/tasks/create", "/tasks/start", "/tasks/exit c1", "/tasks/delete"}
		if diff := cmp.Diff(want, d.got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestExitsAreNeverDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{away: true}
		p := newPublisher("ns", slog.New(slog.DiscardHandler), d.dial)
		const exits = 50
		for i := range exits {
			p.Send(&api.TaskExit{Id: fmt.Sprint(i)})
			for range 2 * maxQueue / exits {
				p.Send(&api.TaskOOM{})
			}
		}
		d.set(func(d *daemon) { d.away = false })
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(d.got) != maxQueue {
			t.Errorf("%d events kept, want %d", len(d.got), maxQueue)
		}
		next := 0
		for _, e := range d.got {
			if e == fmt.Sprintf("/tasks/exit %d", next) {
				next++
			}
		}
		if next != exits {
			t.Errorf("%d of %d exits in order", next, exits)
		}
	})
}

func TestARefusedEventDoesNotStopTheNext(t *testing.T) {
	d := &daemon{bad: "/tasks/oom"}
	p := newPublisher("ns", slog.New(slog.DiscardHandler), d.dial)
	p.Send(&api.TaskOOM{})
	p.Send(&api.TaskPaused{})
	p.Send(&emptypb.Empty{}) // no event at all
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Send(&api.TaskResumed{}) // too late
	if diff := cmp.Diff([]string{"/tasks/paused"}, d.got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// service is containerd's event service, in containerd's own types.
type service struct{ *daemon }

func (s service) Forward(ctx context.Context, r *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	e := &api.Envelope{Topic: r.Envelope.Topic, Namespace: r.Envelope.Namespace, Event: r.Envelope.Event}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.daemon.Forward(ctx, e))
}

// serve runs the service until stop.
func serve(t *testing.T, path string, d *daemon) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	ttrpcevents.RegisterTTRPCEventsService(srv, service{d})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(context.Background(), l)
	}()
	return func() {
		_ = srv.Close()
		<-done
	}
}

func TestTheDaemonRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ttrpc")
	d := &daemon{}
	stop := serve(t, path, d)
	p := New(Config{Namespace: "ns", TTRPCAddress: path, Log: slog.New(slog.DiscardHandler)})
	p.Send(&api.TaskCreate{})
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	p.Send(&api.TaskStart{})
	p.Send(&api.TaskExit{Id: "c1"})
	stop = serve(t, path, d)
	defer stop()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/tasks/create", "/tasks/start", "/tasks/exit c1"}, d.got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestWithoutTTRPCTheDaemonsCommandIsRun(t *testing.T) {
	dir := t.TempDir()
	binary, out := filepath.Join(dir, "containerd"), filepath.Join(dir, "out")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho \"$@\" >>"+out+"; cat >/dev/null\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := New(Config{Namespace: "ns", GRPCAddress: "/a.sock", Binary: binary, Log: slog.New(slog.DiscardHandler)})
	p.Send(&api.TaskExit{Id: "c1"})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if want := "--address /a.sock publish --topic /tasks/exit --namespace ns\n"; err != nil || string(got) != want {
		t.Errorf("command = %q, %v, want %q", got, err, want)
	}
}
