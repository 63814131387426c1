// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
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
		// Not with ttrpc's client: when it finds an answer and the connection's end at once, it takes either.
		if _, err := conn.Write(request(t, "x.End", "End")); err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if got := answer(t, all); got != want {
			t.Fatalf("call %d: %d bytes of %d", i, len(got), len(want))
		}
		<-finished
		_ = conn.Close()
		<-served
		callers.stop()
	}
}

// request is the frame of a call with an empty message.
func request(t *testing.T, service, method string) []byte {
	t.Helper()
	b, err := proto.Marshal(&ttrpc.Request{Service: service, Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), 0, 0, 0, 1, frameRequest, 0), b...)
}

// answer is the string that the only frame of a connection brings.
func answer(t *testing.T, all []byte) string {
	t.Helper()
	if len(all) < frameHeader || int(binary.BigEndian.Uint32(all)) != len(all)-frameHeader || all[8] != frameResponse {
		t.Fatalf("%d bytes came, which are not one answer", len(all))
	}
	var r ttrpc.Response
	var s wrapperspb.StringValue
	if err := errors.Join(proto.Unmarshal(all[frameHeader:], &r), proto.Unmarshal(r.Payload, &s)); err != nil {
		t.Fatal(err)
	}
	return s.GetValue()
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
