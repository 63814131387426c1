// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/cgroup"
	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/secrets"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
)

// fakeRunner is a runtime of the mind: containers and processes exist, end by signals, and an end of
// init ends the rest.
type fakeRunner struct {
	mu         sync.Mutex
	containers map[string]*fakeContainer
	fail       map[string]error // by verb
	pids       int
}

type fakeContainer struct {
	started bool
	init    *fakeProcess
	execs   []*fakeProcess
	spec    runner.Container
}

type fakeProcess struct {
	pid  int
	once sync.Once
	done chan struct{}
	code int
	outs []int // its own descriptors of the outputs
	kids func() []*fakeProcess
}

func (p *fakeProcess) Pid() int              { return p.pid }
func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) ExitCode() int         { return p.code }

func (p *fakeProcess) end(code int) {
	p.once.Do(func() {
		p.code = code
		for _, fd := range p.outs {
			unix.Close(fd)
		}
		close(p.done)
		if p.kids != nil {
			for _, k := range p.kids() {
				k.end(137)
			}
		}
	})
}

func (p *fakeProcess) Signal(s syscall.Signal) error {
	select {
	case <-p.done:
		return fmt.Errorf("ESRCH: %w", errdefs.ErrNotFound)
	default:
	}
	if s == unix.SIGKILL || s == unix.SIGTERM {
		go p.end(128 + int(s))
	}
	return nil
}

func newFakeRunner() *fakeRunner {
	return &fakeRunner{containers: map[string]*fakeContainer{}, fail: map[string]error{}}
}

func (r *fakeRunner) process(s runner.Streams) *fakeProcess {
	r.pids++
	p := &fakeProcess{pid: r.pids, done: make(chan struct{})}
	for _, f := range s.Files()[1:] {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			panic(err)
		}
		p.outs = append(p.outs, fd)
	}
	s.Start()
	return p
}

func (r *fakeRunner) Create(_ context.Context, c runner.Container) (runner.Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail["create"]; err != nil {
		return nil, err
	}
	fc := &fakeContainer{init: r.process(c.Streams), spec: c}
	fc.init.kids = func() []*fakeProcess {
		r.mu.Lock()
		defer r.mu.Unlock()
		return fc.execs
	}
	r.containers[c.ID] = fc
	return fc.init, nil
}

func (r *fakeRunner) get(id string) *fakeContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[id]
}

func (r *fakeRunner) Start(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail["start"]; err != nil {
		return err
	}
	r.containers[id].started = true
	return nil
}

func (r *fakeRunner) Exec(_ context.Context, e runner.Exec) (runner.Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail["exec"]; err != nil {
		return nil, err
	}
	p := r.process(e.Streams)
	c := r.containers[e.ContainerID]
	c.execs = append(c.execs, p)
	return p, nil
}

func (r *fakeRunner) Delete(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail["delete"]; err != nil {
		return err
	}
	select {
	case <-r.containers[id].init.done:
	default:
		return errors.New("container runs")
	}
	delete(r.containers, id)
	return nil
}

// fakeStorage counts what is mounted for whom.
type fakeStorage struct {
	mu     sync.Mutex
	mounts map[string]int
	fail   error
	bad    error // of Corrupted

	failRemove error
	fetch      func(context.Context) error
}

func (f *fakeStorage) Add(_ context.Context, cid string, list []*pb.Storage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.mounts[cid] += len(list)
	return nil
}

func (f *fakeStorage) Fetch(ctx context.Context, _ []*pb.Storage) error {
	if f.fetch == nil {
		return nil
	}
	return f.fetch(ctx)
}

func (f *fakeStorage) Remove(_ context.Context, cid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failRemove != nil {
		return f.failRemove
	}
	delete(f.mounts, cid)
	return nil
}

func (f *fakeStorage) Devices(_ context.Context, _ string, list []*pb.Device, s *specs.Spec) error {
	for _, d := range list {
		s.Annotations = map[string]string{"device": d.ContainerPath}
	}
	return nil
}

func (f *fakeStorage) Corrupted(string) error { return f.bad }

type fakeNetwork struct{ dns []string }

func (*fakeNetwork) UpdateInterface(_ context.Context, i *types.Interface) (*types.Interface, error) {
	return i, nil
}

func (*fakeNetwork) UpdateRoutes(_ context.Context, r *pb.Routes) (*pb.Routes, error) { return r, nil }

func (*fakeNetwork) ListInterfaces(context.Context) (*pb.Interfaces, error) {
	return &pb.Interfaces{}, nil
}

func (*fakeNetwork) ListRoutes(context.Context) (*pb.Routes, error)       { return &pb.Routes{}, nil }
func (*fakeNetwork) AddNeighbors(context.Context, *pb.ARPNeighbors) error { return nil }
func (f *fakeNetwork) SetDNS(_ context.Context, lines []string) error     { f.dns = lines; return nil }

type fakeModules struct {
	loaded []string
	opened bool
	fail   error
}

func (*fakeModules) Wait(ctx context.Context) error { return ctx.Err() }
func (f *fakeModules) Load(name string, _ ...string) error {
	f.loaded = append(f.loaded, name)
	return f.fail
}

func (f *fakeModules) Open(names ...string) error {
	f.opened, f.loaded = true, append(f.loaded, names...)
	return nil
}

type fakeOOM struct{ ch chan string }

func (fakeOOM) Add(string, cgroup.Group) error { return nil }
func (fakeOOM) Remove(string)                  {}
func (fakeOOM) Check(string)                   {}
func (f fakeOOM) Next(ctx context.Context) (string, error) {
	select {
	case n := <-f.ch:
		return n, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

type fakeSystem struct{ fail error }

func (fakeSystem) SetClock(int64, int64) error   { return nil }
func (fakeSystem) AddEntropy([]byte) error       { return nil }
func (f fakeSystem) SharedPIDs() (string, error) { return "/ns/pid", nil }
func (f fakeSystem) Namespaces(string, map[string]string) (map[string]string, error) {
	ns := map[string]string{"ipc": "/ns/ipc", "uts": "/ns/uts"}
	return ns, f.fail
}

// fixture is a service over fakes.
type fixture struct {
	*service
	runner  *fakeRunner
	storage *fakeStorage
	network *fakeNetwork
	modules *fakeModules
	oom     fakeOOM
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		runner: newFakeRunner(), storage: &fakeStorage{mounts: map[string]int{}}, network: &fakeNetwork{},
		modules: &fakeModules{}, oom: fakeOOM{make(chan string, 1)},
	}
	f.service = newService(Config{
		Secrets: secrets.New(secrets.Config{}),
		Runner:  f.runner, Storage: f.storage, Network: f.network, Modules: f.modules,
		OOM: f.oom, System: fakeSystem{}, CgroupRoot: t.TempDir(), RunDir: t.TempDir(), Version: "test", Log: discard,
		Policy: gate.Policy{Open: true},
	})
	t.Cleanup(func() {
		f.runner.mu.Lock()
		all := f.runner.containers
		f.runner.mu.Unlock()
		for _, c := range all {
			c.init.end(137)
		}
		if err := f.close(within(t)); err != nil {
			t.Error(err)
		}
		for _, c := range f.containers {
			_ = c.undo.Run(context.Background())
		}
	})
	return f
}
