// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/portmux"
	"github.com/coco-shim/coco/virtcontainers/answers"
)

// The calls of the agent that a pod needs, by role. The ttrpc client satisfies all of them.
type (
	sandboxGuest interface {
		CreateSandbox(context.Context, *agent.CreateSandboxRequest) (*emptypb.Empty, error)
		DestroySandbox(context.Context, *agent.DestroySandboxRequest) (*emptypb.Empty, error)
		GetGuestDetails(context.Context, *agent.GuestDetailsRequest) (*agent.GuestDetailsResponse, error)
		SetGuestDateTime(context.Context, *agent.SetGuestDateTimeRequest) (*emptypb.Empty, error)
		GetOOMEvent(context.Context, *agent.GetOOMEventRequest) (*agent.OOMEvent, error)
		GetMetrics(context.Context, *agent.GetMetricsRequest) (*agent.Metrics, error)
	}
	networkGuest interface {
		UpdateInterface(context.Context, *agent.UpdateInterfaceRequest) (*types.Interface, error)
		UpdateRoutes(context.Context, *agent.UpdateRoutesRequest) (*agent.Routes, error)
		AddARPNeighbors(context.Context, *agent.AddARPNeighborsRequest) (*emptypb.Empty, error)
	}
	containerGuest interface {
		CopyFile(context.Context, *agent.CopyFileRequest) (*emptypb.Empty, error)
		CreateContainer(context.Context, *agent.CreateContainerRequest) (*emptypb.Empty, error)
		StartContainer(context.Context, *agent.StartContainerRequest) (*emptypb.Empty, error)
		RemoveContainer(context.Context, *agent.RemoveContainerRequest) (*emptypb.Empty, error)
		GetDiagnosticData(context.Context, *agent.GetDiagnosticDataRequest) (*agent.GetDiagnosticDataResponse, error)
	}
	resourceGuest interface {
		UpdateContainer(context.Context, *agent.UpdateContainerRequest) (*emptypb.Empty, error)
		StatsContainer(context.Context, *agent.StatsContainerRequest) (*agent.StatsContainerResponse, error)
		PauseContainer(context.Context, *agent.PauseContainerRequest) (*emptypb.Empty, error)
		ResumeContainer(context.Context, *agent.ResumeContainerRequest) (*emptypb.Empty, error)
	}
	processGuest interface {
		ExecProcess(context.Context, *agent.ExecProcessRequest) (*emptypb.Empty, error)
		SignalProcess(context.Context, *agent.SignalProcessRequest) (*emptypb.Empty, error)
		WaitProcess(context.Context, *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error)
		TtyWinResize(context.Context, *agent.TtyWinResizeRequest) (*emptypb.Empty, error)
	}
	streamGuest interface {
		WriteStdin(context.Context, *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error)
		ReadStdout(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
		ReadStderr(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
		CloseStdin(context.Context, *agent.CloseStdinRequest) (*emptypb.Empty, error)
	}
	guest interface {
		sandboxGuest
		networkGuest
		containerGuest
		resourceGuest
		processGuest
		streamGuest
	}
)

// link is the connection with a VM's agent.
type link struct {
	guest
	vm      hypervisor.VM
	conn    *answers.Conn
	health  agent.HealthService
	client  *ttrpc.Client
	gone    chan struct{} // closed when the connection has ended
	doomed  atomic.Value  // string: why we ended the VM, where we did
	streams bool          // the agent takes byte streams
	seccomp bool          // the guest can apply filters
	removes bool          // the guest can take copied files away
	all     bool          // a signal can reach every process of a container
	rules   bool          // the guest takes routing rules
	raw     bool          // the guest takes names that are not UTF-8
	timeout time.Duration
}

// connect waits until the agent answers. The error of a VM that did not come up tells the phase and
// the last console lines.
func connect(ctx context.Context, vm hypervisor.VM, timeout time.Duration) (*link, error) {
	raw, err := vm.Dial(ctx, contract.PortAgent)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	conn, gone := answers.New(raw), make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(gone) }),
		ttrpc.WithUnaryClientInterceptor(answers.Clean))
	l := &link{
		guest: agent.NewAgentServiceClient(client), health: agent.NewHealthClient(client),
		vm: vm, conn: conn, client: client, gone: gone, timeout: timeout,
	}
	res, err := l.health.Check(ctx, &agent.CheckRequest{})
	if err == nil && res.GetStatus() != agent.HealthCheckResponse_SERVING {
		err = fmt.Errorf("the agent answers %s: %w", res.GetStatus(), errdefs.ErrUnavailable)
	}
	if err != nil {
		err = l.fault(ctx, err)
		return nil, errors.Join(fmt.Errorf("agent health check: %w", err), l.close())
	}
	return l, nil
}

func (l *link) close() error {
	if err := l.client.Close(); err != nil {
		return fmt.Errorf("close the agent's connection: %w", err)
	}
	return nil
}

// askDetails reads the agent's features by GetGuestDetails.
func (l *link) askDetails(ctx context.Context) error {
	ctx, cancel := l.within(ctx)
	defer cancel()
	res, err := l.GetGuestDetails(ctx, &agent.GuestDetailsRequest{})
	if err != nil {
		return fmt.Errorf("get guest details: %w", l.fault(ctx, err))
	}
	d := res.GetAgentDetails()
	l.streams = slices.Contains(d.GetExtraFeatures(), contract.FeatureStreams)
	l.seccomp = d.GetSupportsSeccomp()
	l.removes = slices.Contains(d.GetExtraFeatures(), contract.FeatureRemove)
	l.all = slices.Contains(d.GetExtraFeatures(), contract.FeatureSignalAll)
	l.rules = slices.Contains(d.GetExtraFeatures(), contract.FeatureRules)
	l.raw = slices.Contains(d.GetExtraFeatures(), contract.FeatureRawPath)
	return nil
}

// within bounds a call that has no deadline of its own.
func (l *link) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, l.timeout, fmt.Errorf("no answer from the agent within %s: %w", l.timeout,
		context.DeadlineExceeded))
}

// fault gives an agent's error its class. When the connection broke, the reason is the VM's: it is
// waited for shortly.
func (l *link) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !isStatus(err) {
		return context.Cause(ctx)
	}
	if !lost(err) {
		return classify(err)
	}
	if lie := l.conn.Err(); lie != nil { // which ends the VM too, for just this reason
		return fmt.Errorf("%w: %w", lie, errdefs.ErrUnavailable)
	}
	t := time.NewTimer(lostVM)
	defer t.Stop()
	select {
	case <-l.vm.Done():
		if why, ok := l.doomed.Load().(string); ok {
			return fmt.Errorf("%w: %w", &hypervisor.DeadError{
				VM: l.vm.ID(), Phase: hypervisor.PhaseRun,
				Reason: "it was ended: " + why,
			}, errdefs.ErrUnavailable)
		}
		if dead := l.vm.Err(); dead != nil {
			return fmt.Errorf("%w: %w", dead, errdefs.ErrUnavailable)
		}
	case <-t.C:
	}
	return fmt.Errorf("the agent's connection broke: %w: %w", err, errdefs.ErrUnavailable)
}

// named prefixes an error with the operation, unless its text begins with it already.
func named(what string, err error) error {
	if a, ok := err.(*agentError); ok { //nolint:errorlint // of the agent's words alone, which are not ours
		return fmt.Errorf("%s: %w", what, &agentError{strings.TrimPrefix(a.words, what+": "), a.class})
	}
	if strings.HasPrefix(err.Error(), what+":") {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// lost says whether an error is that of a connection whose other end is gone: of the agent's, or of a stream's, which
// on Cloud Hypervisor is a socket.
func lost(err error) bool {
	for _, e := range []error{
		ttrpc.ErrClosed, answers.ErrProtocol, portmux.ErrLost, io.EOF, io.ErrUnexpectedEOF,
		unix.ECONNRESET, unix.EPIPE,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func isStatus(err error) bool {
	s, ok := status.FromError(err)
	return ok && s.Code() != codes.DeadlineExceeded && s.Code() != codes.Canceled
}

var classes = map[codes.Code]error{
	codes.NotFound:           errdefs.ErrNotFound,
	codes.AlreadyExists:      errdefs.ErrAlreadyExists,
	codes.InvalidArgument:    errdefs.ErrInvalidArgument,
	codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
	codes.Unavailable:        errdefs.ErrUnavailable,
	codes.Unimplemented:      errdefs.ErrNotImplemented,
	codes.PermissionDenied:   errdefs.ErrPermissionDenied,
	codes.ResourceExhausted:  errdefs.ErrResourceExhausted,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
	codes.Canceled:           context.Canceled,
}

// agentError carries the agent's own text, cleaned by answers.Clean and marked as the guest's, and an errdefs class.
type agentError struct {
	words string
	class error
}

func (e *agentError) Error() string { return "guest: " + e.words }
func (e *agentError) Unwrap() error { return e.class }

func classify(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	class := classes[s.Code()]
	if class == nil {
		class = errdefs.ErrUnknown
	}
	return &agentError{words: s.Message(), class: class}
}
