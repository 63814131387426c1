// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rpc adapts methods of the shim's services to ttrpc. Errors get their gRPC codes here, and
// nowhere else in the shim.
package rpc

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/internal/wire"
	"github.com/coco-shim/coco/internal/words"
)

// Unary adapts one method: decode, call, and map the error's class to a gRPC code.
func Unary[T any, P interface {
	*T
	proto.Message
}, R any](call func(context.Context, P) (R, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := P(new(T))
		if err := unmarshal(req); err != nil {
			return nil, statusOf(err)
		}
		resp, err := call(ctx, req)
		if err != nil {
			return nil, statusOf(err)
		}
		return resp, nil
	}
}

// mostText bounds an error's text. A ttrpc message holds 4 MiB, and a longer one breaks the connection for all calls.
const mostText = 64 << 10

// statusOf converts an error for the client: its text and the code of its class. Details are left out, since clients
// print each wrapped error on a line of its own. Bytes that are not UTF-8, as in the name of a file, are replaced: a
// message cannot carry them, and ttrpc would close the connection without an error.
func statusOf(err error) error {
	st := status.Convert(errgrpc.ToGRPC(err))
	return status.Error(st.Code(), words.UTF8(st.Message(), mostText))
}

// Raw adapts a method whose messages are read and written field by field. They travel as an empty
// message with unknown fields, which the codec keeps.
func Raw(call func(context.Context, wire.Fields) (wire.Message, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var req, resp emptypb.Empty
		if err := unmarshal(&req); err != nil {
			return nil, statusOf(err)
		}
		f, err := wire.Parse(req.ProtoReflect().GetUnknown())
		if err != nil {
			return nil, statusOf(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
		}
		m, err := call(ctx, f)
		if err != nil {
			return nil, statusOf(err)
		}
		resp.ProtoReflect().SetUnknown(protoreflect.RawFields(m))
		return &resp, nil
	}
}
