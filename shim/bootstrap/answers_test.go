// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The call that ends the shim is answered, also when it is the first on its connection; with an answer of
// any size.
func TestTheLastCallIsAnswered(t *testing.T) {
	for i := range 30 {
		calls := newAnswers()
		server, err := ttrpc.NewServer()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		want := strings.Repeat("x", i*1000)
		server.RegisterService("x.End", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
			"End": func(_ context.Context, unmarshal func(any) error) (any, error) {
				defer close(done)
				return wrapperspb.String(want), unmarshal(new(emptypb.Empty))
			},
		}})
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		callers := newClients(time.Hour, func() {})
		served, finished := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(context.Background(), listener{l, calls, callers})
		}()
		go func() {
			defer close(finished)
			<-done
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			calls.wait(ctx)
			if ctx.Err() != nil {
				t.Error("the answer was written and is still waited for")
			}
			_ = server.Shutdown(ctx)
		}()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		var got wrapperspb.StringValue
		if err := client.Call(t.Context(), "x.End", "End", new(emptypb.Empty), &got); err != nil || got.GetValue() != want {
			t.Fatalf("call %d: %v, %d bytes of %d", i, err, len(got.GetValue()), len(want))
		}
		<-finished
		_ = client.Close()
		<-served
		callers.stop()
	}
}

// A client that went before its answer is owed none: the shim's end need not wait for it.
func TestNobodyWaitsForAnswersToWhoHasGone(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	calls, callers := newAnswers(), newClients(time.Hour, func() {})
	defer callers.stop()
	theirs, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := listener{l, calls, callers}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{0, 0, 0, 3, 0, 0, 0, 1, frameRequest, 0}, "abc"...)
	if _, err := theirs.Write(append(frame, frame[:11]...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ours, make([]byte, len(frame)+11)); err != nil {
		t.Fatal(err)
	}
	if calls.owed != 1 {
		t.Errorf("%d answers are owed after one call and a part of another, want 1", calls.owed)
	}
	_, _ = theirs.Close(), ours.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	calls.wait(ctx)
	if ctx.Err() != nil || l.Close() != nil {
		t.Errorf("%d answers are owed to nobody", calls.owed)
	}
}
