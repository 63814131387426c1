// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/coco-shim/coco/agent/forward"
	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/agent/resolver"
	"github.com/coco-shim/coco/agent/transport"
	"github.com/coco-shim/coco/agent/upper"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/words"
)

// Server is the host's only way into the guest: the port for requests, the port for byte streams and, if configured,
// the ports for port-forward, for name lookups and for a container's files. All input on them passes package gate
// before the agent acts on it. A request goes through pass; a connection to one of the other ports begins with a
// gate.Greeting.
type Server struct {
	service *service
	rpc     *ttrpc.Server
	others  map[uint32]portServer // the other ports
}

// portServer serves the connections to a port. Close ends them.
type portServer interface {
	Serve(net.Listener) error
	Close()
}

// NewServer makes a Server.
func NewServer(cfg Config) (*Server, error) {
	s := &Server{service: newService(cfg), others: map[uint32]portServer{}}
	var err error
	if s.rpc, err = ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.service.pass)); err != nil {
		return nil, err
	}
	pb.RegisterAgentServiceService(s.rpc, s.service)
	pb.RegisterHealthService(s.rpc, s.service)
	s.others[contract.PortStreams] = s.service.streams
	if cfg.PortForward {
		s.others[contract.PortForward] = forward.New(cfg.Policy.Forward)
	}
	if cfg.Resolver {
		s.others[contract.PortResolver] = resolver.New(cfg.Policy.Resolver)
	}
	if !cfg.Confidential {
		s.others[contract.PortUpper] = upper.New(s.service.upperDir)
	}
	return s, nil
}

// Serve serves the host on every transport that the machine has, until ctx is done.
func (s *Server) Serve(ctx context.Context) error {
	return transport.Serve(ctx, s.ports(ctx), s.service.Log)
}

// ports returns the ports that the guest serves.
func (s *Server) ports(ctx context.Context) transport.Ports {
	p := transport.Ports{contract.PortAgent: func(l net.Listener) error {
		if err := s.rpc.Serve(ctx, l); !errors.Is(err, ttrpc.ErrServerClosed) {
			return err
		}
		return nil
	}}
	for n, m := range s.others {
		p[n] = m.Serve
	}
	return p
}

// Stopped is closed when the host has destroyed the sandbox.
func (s *Server) Stopped() <-chan struct{} { return s.service.stopped }

// Close ends blocked calls, waits until ctx is done for processes and calls to end (the call that destroys the sandbox
// is answered), and ends the streams that no request has claimed. Serve ends with its own context.
func (s *Server) Close(ctx context.Context) error {
	err := s.service.close(ctx)
	if serr := s.rpc.Shutdown(ctx); serr != nil {
		err = errors.Join(err, fmt.Errorf("stop serving: %w", serr))
	}
	s.service.bursts.Close()
	for _, m := range s.others {
		m.Close()
	}
	return err
}

// pass is the way of every request: decoded once, refused if a part is unknown, given its turn, compared with the
// policy, handled. The policy notes what has succeeded before the next turn. An error's class becomes a code.
func (s *service) pass(
	ctx context.Context, decode ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
) (any, error) {
	done := func() {}
	defer func() { done() }()
	var grant *gate.Grant
	resp, err := method(ctx, func(req any) error {
		m, err := gate.Decode(s.bursts.Decoder(decode), req)
		if err != nil {
			return err
		}
		if done, err = s.begin(ctx, info.FullMethod, m); err != nil {
			return err
		}
		if grant, err = s.Policy.Ask(info.FullMethod, m); err == nil {
			grant.Apply()
		}
		return err
	})
	if err == nil {
		grant.Commit()
		return resp, nil
	}
	s.Log.Debug("request failed", "method", info.FullMethod, "error", err)
	st := status.Convert(errgrpc.ToGRPC(classify(err)))
	return nil, status.Error(st.Code(), words.UTF8(st.Message(), words.Most)) // a name that is no UTF-8 breaks no message
}

// classify gives errors without a class the one that hosts expect.
func classify(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errdefs.IsUnknown(err), errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err), errdefs.IsAlreadyExists(err),
		errdefs.IsFailedPrecondition(err), errdefs.IsUnavailable(err), errdefs.IsNotImplemented(err),
		errdefs.IsResourceExhausted(err), errdefs.IsPermissionDenied(err), errdefs.IsAborted(err),
		errdefs.IsDataLoss(err), errdefs.IsOutOfRange(err), errdefs.IsDeadlineExceeded(err):
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
}
