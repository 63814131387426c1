// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/network"
)

func guestNetwork() network.Guest {
	return network.Guest{
		Interfaces: []*types.Interface{{Name: "eth0", Device: "eth0", HwAddr: "02:00:00:00:00:01"}},
		Routes:     []*types.Route{{Device: "eth0", Gateway: "10.0.0.1"}},
		Neighbours: []*types.ARPNeighbor{{Device: "eth0"}},
	}
}

// fakeAgent is a guest that behaves: containers are programs written in Go. Calls that a pod does not
// make are those of the embedded nil interface.
type fakeAgent struct {
	agent.AgentServiceService
	vm     *fakeVM
	server *ttrpc.Server
	wg     sync.WaitGroup
	lis    *oneListener
	ctx    context.Context // of the guest
	cancel context.CancelFunc

	mu         sync.Mutex
	sandbox    bool                              // guarded by mu
	streams    map[uint32]*net.UnixConn          // guarded by mu
	most       int                               // guarded by mu; streams at once that no request has named
	containers map[string]map[string]*guestProc  // guarded by mu
	files      map[string]*agent.CopyFileRequest // guarded by mu
	created    *agent.CreateContainerRequest     // guarded by mu; the last one
	resized    *agent.TtyWinResizeRequest        // guarded by mu; the last one
	oom        chan string
	hang       atomic.Bool   // it answers nothing any more
	conn       *net.UnixConn // of the protocol; guarded by mu
}

// guestProc is a process: it runs until a signal or its own end.
type guestProc struct {
	args                  []string
	stdin, stdout, stderr *net.UnixConn
	rpcOut                chan []byte
	signal                chan uint32
	exited                chan struct{}
	code                  int32
}

func newFakeAgent(vm *fakeVM) *fakeAgent {
	ctx, cancel := context.WithCancel(context.Background())
	a := &fakeAgent{
		vm: vm, ctx: ctx, cancel: cancel, lis: &oneListener{conns: make(chan net.Conn), done: make(chan struct{})},
		streams: map[uint32]*net.UnixConn{}, containers: map[string]map[string]*guestProc{},
		files: map[string]*agent.CopyFileRequest{}, oom: make(chan string),
	}
	var err error
	if a.server, err = ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(a.hanging)); err != nil {
		panic(err)
	}
	var service agent.AgentServiceService = a
	if l := vm.w.lies; l != nil {
		if l.under != nil {
			service = l.under(a)
		}
		l.AgentServiceService, service = service, l
	}
	agent.RegisterAgentServiceService(a.server, service)
	agent.RegisterHealthService(a.server, a)
	a.wg.Go(func() { _ = a.server.Serve(ctx, a.lis) })
	return a
}

func (a *fakeAgent) hanging(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo,
	m ttrpc.Method,
) (any, error) {
	if a.hang.Load() {
		<-a.ctx.Done()
	}
	return m(ctx, u)
}

func (a *fakeAgent) close() {
	a.mu.Lock()
	if a.conn != nil {
		_ = a.conn.Close() // first: a guest that has ended answers nothing any more
	}
	a.mu.Unlock()
	a.cancel()
	_ = a.lis.Close()
	_ = a.server.Close()
	a.mu.Lock()
	for _, c := range a.streams {
		_ = c.Close()
	}
	for _, ps := range a.containers {
		for _, p := range ps {
			p.closeStreams()
		}
	}
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *fakeAgent) accept(port uint32) (net.Conn, error) {
	host, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	switch port {
	case contract.PortAgent:
		a.mu.Lock()
		a.conn = guest
		a.mu.Unlock()
		select {
		case a.lis.conns <- guest:
		case <-a.lis.done:
			return nil, errors.Join(net.ErrClosed, guest.Close(), host.Close())
		}
	case contract.PortStreams:
		a.wg.Go(func() { a.announced(guest) })
	case contract.PortResolver:
		a.wg.Go(func() { a.asks(guest) })
	case contract.PortUpper:
		a.wg.Go(func() { a.sendsUpper(guest) })
	}
	return host, nil
}

func (a *fakeAgent) announced(c *net.UnixConn) {
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n') // the host writes no more before "ok"
	var n uint32
	if _, serr := fmt.Sscanf(line, "stream %d\n", &n); err != nil || serr != nil {
		_ = c.Close()
		return
	}
	a.mu.Lock()
	a.streams[n] = c
	a.most = max(a.most, len(a.streams))
	a.mu.Unlock()
	if _, err := io.WriteString(c, "ok\n"); err != nil {
		_ = c.Close()
	}
}

func (a *fakeAgent) claimLocked(n uint32) *net.UnixConn {
	if n == 0 {
		return nil
	}
	c := a.streams[n]
	delete(a.streams, n)
	return c
}

// count is the number of containers in the guest.
func (a *fakeAgent) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.containers)
}

// crash breaks the connection: the agent is gone, the VM is not.
func (a *fakeAgent) crash() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.conn.Close()
}

// fail is the world's turn to fail a call.
func (a *fakeAgent) fail(name string) error {
	if err := a.vm.w.op("agent " + name); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

func (a *fakeAgent) Check(context.Context, *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{Status: agent.HealthCheckResponse_SERVING}, a.fail("check")
}

func (a *fakeAgent) Version(context.Context, *agent.CheckRequest) (*agent.VersionCheckResponse, error) {
	return &agent.VersionCheckResponse{}, nil
}

func (a *fakeAgent) UpdateInterface(_ context.Context, r *agent.UpdateInterfaceRequest) (*types.Interface, error) {
	if err := a.vm.network(func(g *guestNet) error { return g.update(r.GetInterface(), a.vm) }); err != nil {
		return nil, err
	}
	return r.GetInterface(), a.fail("interface")
}

func (a *fakeAgent) UpdateRoutes(_ context.Context, r *agent.UpdateRoutesRequest) (*agent.Routes, error) {
	_ = a.vm.network(func(g *guestNet) error { g.routes = len(r.GetRoutes().GetRoutes()); return nil })
	return r.GetRoutes(), a.fail("routes")
}

func (a *fakeAgent) AddARPNeighbors(context.Context, *agent.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.fail("neighbours")
}

func (a *fakeAgent) CreateSandbox(context.Context, *agent.CreateSandboxRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	a.sandbox = true
	a.mu.Unlock()
	return &emptypb.Empty{}, a.fail("sandbox")
}

func (a *fakeAgent) DestroySandbox(context.Context, *agent.DestroySandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) GetGuestDetails(context.Context, *agent.GuestDetailsRequest) (*agent.GuestDetailsResponse, error) {
	d := &agent.AgentDetails{Version: "fake", SupportsSeccomp: true}
	if !a.vm.w.noStreams {
		d.ExtraFeatures = []string{contract.FeatureStreams, contract.FeatureRewrite}
		if a.vm.w.oneOutput {
			d.ExtraFeatures = append(d.ExtraFeatures, contract.FeatureOneOutput)
		}
	}
	return &agent.GuestDetailsResponse{AgentDetails: d}, a.fail("details")
}

func (a *fakeAgent) SetGuestDateTime(context.Context, *agent.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.fail("clock")
}

func (a *fakeAgent) GetOOMEvent(ctx context.Context, _ *agent.GetOOMEventRequest) (*agent.OOMEvent, error) {
	if a.vm.w.noStats {
		return nil, status.Error(codes.PermissionDenied, "denied [capability] GetOOMEvent")
	}
	select {
	case id := <-a.oom:
		return &agent.OOMEvent{ContainerId: id}, nil
	case <-ctx.Done():
	case <-a.ctx.Done():
	}
	return nil, status.Error(codes.Canceled, "the sandbox ends")
}

func (a *fakeAgent) CopyFile(_ context.Context, r *agent.CopyFileRequest) (*emptypb.Empty, error) {
	if err := a.fail("copy"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.files[r.GetPath()]; old != nil && r.GetOffset() > 0 {
		old.Data = append(old.Data, r.GetData()...)
	} else {
		a.files[r.GetPath()] = r
	}
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) CreateContainer(_ context.Context, r *agent.CreateContainerRequest) (*emptypb.Empty, error) {
	if err := a.fail("create"); err != nil {
		return nil, err
	}
	for _, s := range r.GetStorages() {
		if s.GetDriver() == "scsi" && !a.vm.hasBlockAt(s.GetSource()) {
			return nil, status.Errorf(codes.Internal, "no device at %s", s.GetSource())
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.sandbox {
		return nil, status.Error(codes.FailedPrecondition, "no sandbox")
	}
	if a.containers[r.GetContainerId()] != nil {
		return nil, status.Error(codes.AlreadyExists, "container exists")
	}
	a.created = r
	p := a.newProcLocked(r.GetOCI().GetProcess().GetArgs(), r.GetStdinPort(), r.GetStdoutPort(), r.GetStderrPort())
	a.containers[r.GetContainerId()] = map[string]*guestProc{"": p}
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) newProcLocked(args []string, in, out, errs uint32) *guestProc {
	p := &guestProc{
		args: args, stdin: a.claimLocked(in), stdout: a.claimLocked(out), stderr: a.claimLocked(errs),
		rpcOut: make(chan []byte, 16), signal: make(chan uint32, 4), exited: make(chan struct{}),
	}
	if a.vm.w.oneOutput && out == errs {
		p.stderr = p.stdout
	}
	return p
}

func (a *fakeAgent) proc(container, exec string) (*guestProc, error) {
	if exec == container {
		exec = ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.containers[container][exec]
	if p == nil {
		return nil, status.Errorf(codes.NotFound, "process %q of container %q", exec, container)
	}
	return p, nil
}

func (a *fakeAgent) StartContainer(_ context.Context, r *agent.StartContainerRequest) (*emptypb.Empty, error) {
	if err := a.fail("start"); err != nil {
		return nil, err
	}
	p, err := a.proc(r.GetContainerId(), "")
	if err != nil {
		return nil, err
	}
	a.wg.Go(func() { p.run(a.ctx) })
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) ExecProcess(_ context.Context, r *agent.ExecProcessRequest) (*emptypb.Empty, error) {
	if err := a.fail("exec"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	c := a.containers[r.GetContainerId()]
	if c == nil {
		a.mu.Unlock()
		return nil, status.Error(codes.NotFound, "no container")
	}
	p := a.newProcLocked(r.GetProcess().GetArgs(), r.GetStdinPort(), r.GetStdoutPort(), r.GetStderrPort())
	if p.args[0] == "missing" {
		a.mu.Unlock()
		p.closeStreams()
		return nil, status.Error(codes.InvalidArgument, "missing: no such file")
	}
	c[r.GetExecId()] = p
	a.mu.Unlock()
	a.wg.Go(func() { p.run(a.ctx) })
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) SignalProcess(_ context.Context, r *agent.SignalProcessRequest) (*emptypb.Empty, error) {
	p, err := a.proc(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	a.vm.w.mu.Lock()
	a.vm.w.signals = append(a.vm.w.signals, fmt.Sprintf("%d to %q, all %v", r.GetSignal(), r.GetExecId(), r.GetAll()))
	a.vm.w.mu.Unlock()
	select {
	case p.signal <- r.GetSignal():
	default:
	}
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) WaitProcess(ctx context.Context, r *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	p, err := a.proc(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	for {
		select {
		case <-p.exited:
			return &agent.WaitProcessResponse{Status: p.code}, nil
		case <-ctx.Done():
			return nil, status.Error(codes.Canceled, "canceled")
		case <-a.ctx.Done():
			return nil, status.Error(codes.Internal, "guest ends")
		}
	}
}

func (a *fakeAgent) RemoveContainer(_ context.Context, r *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	if err := a.fail("remove"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[r.GetContainerId()]
	if c == nil {
		return nil, status.Error(codes.NotFound, "no container")
	}
	for _, p := range c {
		select {
		case p.signal <- 9:
		default:
		}
		p.closeStreams()
	}
	delete(a.containers, r.GetContainerId())
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) PauseContainer(context.Context, *agent.PauseContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.fail("pause")
}

func (a *fakeAgent) ResumeContainer(context.Context, *agent.ResumeContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.fail("resume")
}

func (a *fakeAgent) TtyWinResize(_ context.Context, r *agent.TtyWinResizeRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	a.resized = r
	a.mu.Unlock()
	return &emptypb.Empty{}, a.fail("resize")
}

func (a *fakeAgent) UpdateContainer(context.Context, *agent.UpdateContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.fail("update")
}

// GetMetrics tells its own and claims something of the shim's.
func (a *fakeAgent) GetMetrics(context.Context, *agent.GetMetricsRequest) (*agent.Metrics, error) {
	return &agent.Metrics{Metrics: "coco_guest_memory_total_bytes 512\ncoco_shim_threads 999\n"}, a.fail("metrics")
}

func (a *fakeAgent) StatsContainer(context.Context, *agent.StatsContainerRequest) (*agent.StatsContainerResponse,
	error,
) {
	return &agent.StatsContainerResponse{}, a.fail("stats")
}

func (a *fakeAgent) ReadStdout(_ context.Context, r *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	p, err := a.proc(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	return &agent.ReadStreamResponse{Data: <-p.rpcOut}, nil
}

func (a *fakeAgent) ReadStderr(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	return &agent.ReadStreamResponse{}, nil
}

func (a *fakeAgent) CloseStdin(context.Context, *agent.CloseStdinRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (p *guestProc) closeStreams() {
	for _, c := range []*net.UnixConn{p.stdin, p.stdout, p.stderr} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// run is the process's program.
func (p *guestProc) run(ctx context.Context) {
	defer close(p.exited)
	defer p.closeStreams()
	defer close(p.rpcOut)
	switch p.args[0] {
	case "echo":
		text := strings.Join(p.args[1:], " ") + "\n"
		if p.stdout != nil {
			_, _ = io.WriteString(p.stdout, text)
		} else {
			p.rpcOut <- []byte(text)
		}
	case "spam":
		for range 64 {
			if p.stdout != nil {
				_, _ = p.stdout.Write(make([]byte, 64<<10))
			} else {
				p.rpcOut <- make([]byte, 1<<10)
			}
		}
	case "both":
		for range 100 {
			_, _ = io.WriteString(p.stdout, "o\n")
			_, _ = io.WriteString(p.stderr, "e\n")
		}
	case "cat":
		_, _ = io.Copy(p.stdout, p.stdin)
	case "false":
		p.code = 1
	case "sleep":
		select {
		case s := <-p.signal:
			p.code = 128 + int32(s)
		case <-ctx.Done():
			p.code = 137
		}
	}
}
