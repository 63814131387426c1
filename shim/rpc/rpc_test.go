// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/internal/wire"
)

// Today's tree answers such an error with nothing: ttrpc closes the connection, and each call after it fails too.
func TestNoErrorTextBreaksAMessage(t *testing.T) {
	var fault error
	client := serve(t, map[string]ttrpc.Method{
		"unary": Unary(func(context.Context, *emptypb.Empty) (*emptypb.Empty, error) { return &emptypb.Empty{}, fault }),
		"raw":   Raw(func(context.Context, wire.Fields) (wire.Message, error) { return nil, fault }),
	})
	bad := fmt.Errorf("bind mount /data/caf\xe9: %w", errdefs.ErrInvalidArgument)
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"a name that is no UTF-8": {bad, `/data/caf\xe9`},
		"one among joined errors": {errors.Join(bad, errors.New("and \xff\xfe")), `and \xff\xfe`},
		"one inside a status":     {errgrpc.ToGRPC(bad), `/data/caf\xe9`},
		"8 MiB":                   {errors.New("long " + strings.Repeat("x", 8<<20)), "long x"},
		"8 MiB of no UTF-8":       {errors.New("long " + strings.Repeat("\xff", 8<<20)), `long \xff`},
		"a zero byte":             {errors.New("a\x00b"), "a\x00b"},
	} {
		for _, method := range []string{"unary", "raw"} {
			fault = tc.err
			err := client.Call(t.Context(), "test", method, &emptypb.Empty{}, &emptypb.Empty{})
			if st, ok := status.FromError(err); !ok || !strings.Contains(st.Message(), tc.want) {
				t.Errorf("%s, %s: %.200v, want %q in it", name, method, err, tc.want)
			}
			fault = nil
			if err := client.Call(t.Context(), "test", method, &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
				t.Fatalf("%s, %s: the next call fails: %v", name, method, err)
			}
		}
	}
}

func serve(t *testing.T, methods map[string]ttrpc.Method) *ttrpc.Client {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.Register("test", methods)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = client.Close() })
	return client
}
