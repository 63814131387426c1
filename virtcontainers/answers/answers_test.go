// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package answers

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/words"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(stream uint32, kind byte, body []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	out = binary.BigEndian.AppendUint32(out, stream)
	return append(append(out, kind, 0), body...)
}

func answer(t *testing.T, stream uint32, st *spb.Status, payload proto.Message) []byte {
	t.Helper()
	r := &ttrpc.Response{Status: st}
	var err error
	if r.Payload, err = proto.Marshal(payload); err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return frame(stream, typeResponse, body)
}

// dial makes a client whose guest answers each request with what say returns for its stream.
func dial(t *testing.T, say func(stream uint32) []byte) (*Conn, *ttrpc.Client, chan struct{}) {
	t.Helper()
	host, guest := net.Pipe()
	gone, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			var h [headerSize]byte
			if _, err := io.ReadFull(guest, h[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, guest, int64(binary.BigEndian.Uint32(h[:]))); err != nil {
				return
			}
			if _, err := guest.Write(say(binary.BigEndian.Uint32(h[4:]))); err != nil {
				return
			}
		}
	}()
	c := New(host)
	client := ttrpc.NewClient(c, ttrpc.WithOnClose(func() { close(gone) }), ttrpc.WithUnaryClientInterceptor(Clean))
	t.Cleanup(func() {
		_ = client.Close()
		_ = guest.Close()
		<-over
		<-gone
	})
	return c, client, gone
}

func TestAnswersPassAndAreCounted(t *testing.T) {
	text := strings.Repeat("m", 200<<10)
	c, client, _ := dial(t, func(n uint32) []byte { return answer(t, n, nil, &agent.Metrics{Metrics: text}) })
	a := agent.NewAgentServiceClient(client)
	for i := range 3 {
		m, err := a.GetMetrics(t.Context(), &agent.GetMetricsRequest{})
		if err != nil || m.GetMetrics() != text || c.Heard() != uint64(i+1) {
			t.Fatalf("call %d: %d bytes, %v, %d heard", i, len(m.GetMetrics()), err, c.Heard())
		}
	}
}

func TestALongAnswerIsDroppedAndTheNextOneRead(t *testing.T) {
	long := true
	_, client, _ := dial(t, func(n uint32) []byte {
		if long {
			return answer(t, n, nil, &agent.Metrics{Metrics: strings.Repeat("m", maxMessage-100)})
		}
		return answer(t, n, nil, &agent.WaitProcessResponse{Status: 7})
	})
	a := agent.NewAgentServiceClient(client)
	_, err := a.WaitProcess(t.Context(), &agent.WaitProcessRequest{ContainerId: strings.Repeat("c", 9000)})
	if status.Code(err) != codes.ResourceExhausted ||
		!strings.Contains(err.Error(), "the answer to WaitProcess has 4194") {
		t.Errorf("WaitProcess = %v", err)
	}
	long = false
	r, err := a.WaitProcess(t.Context(), &agent.WaitProcessRequest{})
	if err != nil || r.GetStatus() != 7 {
		t.Errorf("the next one = %v, %v", r, err)
	}
}

func TestWordsOfAnErrorAreCleanedAndBounded(t *testing.T) {
	_, client, _ := dial(t, func(n uint32) []byte {
		return answer(t, n, &spb.Status{Code: 5, Message: strings.Repeat("A\n\x1b[31m", 3000)}, nil)
	})
	_, err := agent.NewAgentServiceClient(client).StartContainer(t.Context(), &agent.StartContainerRequest{})
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.NotFound || len(st.Message()) > words.Most ||
		strings.ContainsAny(st.Message(), "\n\x1b") {
		t.Errorf("%v of %d bytes: %.60q", st.Code(), len(st.Message()), st.Message())
	}
}

// countLines counts what a log is given.
type countLines struct{ n atomic.Int64 }

func (c *countLines) Write(p []byte) (int, error) {
	c.n.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

// The client writes a line for each message that it has no use for: 203,000 in a second.
func TestTheFirstProtocolErrorEndsTheConnection(t *testing.T) {
	good := func(n uint32) []byte { return answer(t, n, nil, &agent.WaitProcessResponse{}) }
	huge := binary.BigEndian.AppendUint32(nil, maxMessage+1)
	for name, lie := range map[string]func(n uint32) []byte{
		"answers that nobody asked for": func(uint32) []byte { return bytes.Repeat(frame(99, typeResponse, nil), 6500) },
		"an answer again":               func(n uint32) []byte { return append(good(n), good(n)...) },
		"a request":                     func(n uint32) []byte { return frame(n, typeRequest, []byte("x")) },
		"data":                          func(n uint32) []byte { return bytes.Repeat(frame(n, 3, []byte("x")), 1000) },
		"more than a message holds":     func(n uint32) []byte { return append(huge, frame(n, typeResponse, nil)[4:]...) },
	} {
		t.Run(name, func(t *testing.T) {
			lines := &countLines{}
			old := logrus.StandardLogger().Out
			logrus.SetOutput(lines)
			defer logrus.SetOutput(old)
			c, client, gone := dial(t, lie)
			_, err := agent.NewAgentServiceClient(client).WaitProcess(t.Context(), &agent.WaitProcessRequest{})
			<-gone
			if !errors.Is(c.Err(), ErrProtocol) || err != nil && !errors.Is(err, ErrProtocol) &&
				!errors.Is(err, ttrpc.ErrClosed) {
				t.Errorf("the call = %v, the connection = %v, want ErrProtocol", err, c.Err())
			}
			if n := lines.n.Load(); n > 1 {
				t.Errorf("%d log lines", n)
			}
		})
	}
}

// A slow guest may answer a call whose caller has gone: that is no lie.
func TestALateAnswerIsNoError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	late := make(chan []byte, 1)
	c, client, _ := dial(t, func(n uint32) []byte {
		if n == 1 {
			cancel()
			late <- answer(t, n, nil, &agent.WaitProcessResponse{})
			return nil
		}
		return append(<-late, answer(t, n, nil, &agent.WaitProcessResponse{Status: 3})...)
	})
	a := agent.NewAgentServiceClient(client)
	if _, err := a.WaitProcess(ctx, &agent.WaitProcessRequest{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the one that is given up = %v", err)
	}
	r, err := a.WaitProcess(t.Context(), &agent.WaitProcessRequest{})
	if err != nil || r.GetStatus() != 3 || c.Err() != nil {
		t.Errorf("the next one = %v, %v, %v", r, err, c.Err())
	}
}

// With a guest that does not read, every call waited for ever, past its deadline: the client writes under its lock.
func TestAGuestThatReadsNothingHoldsNobodyUp(t *testing.T) {
	host, guest := net.Pipe()
	gone := make(chan struct{})
	client := ttrpc.NewClient(New(host), ttrpc.WithOnClose(func() { close(gone) }),
		ttrpc.WithUnaryClientInterceptor(Clean))
	a := agent.NewAgentServiceClient(client)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := a.DestroySandbox(ctx, &agent.DestroySandboxRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("DestroySandbox = %v", err)
		}
		cancel()
	}
	_, _ = client.Close(), guest.Close()
	<-gone
}

type scripted struct {
	net.Conn
	in *bytes.Reader
}

func (s scripted) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s scripted) Close() error                { return nil }

// FuzzConn feeds the host with what a guest may send, in answer to three requests: no more than these are answered,
// and nothing longer than allowed.
func FuzzConn(f *testing.F) {
	f.Add(append(frame(1, typeResponse, []byte("abc")), frame(3, typeResponse, nil)...),
		[]byte("\x0a\x01s\x12\x0aGetMetrics"))
	f.Add(frame(1, 3, []byte("x")), []byte{})
	f.Add(append(frame(5, typeResponse, make([]byte, 40<<10)), 0xff), []byte("\x12\x02"))
	f.Fuzz(func(t *testing.T, in, req []byte) {
		defer worktest.Bound(t, len(in)+3*len(req))()
		c := New(scripted{in: bytes.NewReader(in)})
		for stream := uint32(1); stream < 7; stream += 2 {
			for _, b := range frame(stream, typeRequest, req) { // byte by byte is the hardest
				if _, err := c.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, err := io.ReadAll(c)
		if len(got) > len(in)+3*(headerSize+200) {
			t.Errorf("%d bytes of %d, %v", len(got), len(in), err)
		}
		if c.Heard() > 3 {
			t.Errorf("%d answers", c.Heard())
		}
	})
}
