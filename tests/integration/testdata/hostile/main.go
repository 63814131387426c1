// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command hostile is the first process of a VM whose guest was taken over. It speaks the agent's protocol well enough
// for a container to start, and then breaks it in the way that hostile=… on the kernel's command line names.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
)

// The ways to lie.
const (
	lies    = "lies"    // endless errors, answers of 4 MiB, forged OOM events, processes that do not end
	answers = "answers" // answers to requests that were never made
	frames  = "frames"  // frames of the channel without any use
	stream  = "stream"  // a stream that the host did not open
	silence = "silence" // nothing any more
)

func main() {
	if err := run(); err != nil {
		fmt.Println("hostile init:", err)
	}
	time.Sleep(24 * time.Hour) // the host ends us
}

func run() error {
	for dir, fs := range map[string]string{"/dev": "devtmpfs", "/sys": "sysfs", "/proc": "proc"} {
		_ = os.MkdirAll(dir, 0o755)
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	g := &guest{mode: lies}
	for w := range strings.FieldsSeq(string(cmdline)) {
		if m, ok := strings.CutPrefix(w, "hostile="); ok {
			g.mode = m
		}
	}
	port, err := os.OpenFile("/dev/vport0p1", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g.channel = &channel{File: port}
	mux := portmux.NewMux(g.channel)
	calls, err := mux.Listen(contract.PortAgent)
	if err != nil {
		return err
	}
	streams, err := mux.Listen(contract.PortStreams)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(g.answer))
	if err != nil {
		return err
	}
	agent.RegisterAgentServiceService(server, nil) // no method of it is ever called
	agent.RegisterHealthService(server, nil)
	go g.greet(streams)
	go func() { _ = server.Serve(context.Background(), &remembering{calls, g}) }()
	return mux.Serve()
}

type guest struct {
	mode      string
	channel   *channel
	conn      atomic.Pointer[net.Conn] // with the host's client
	begun     atomic.Bool              // the container was started: the lies begin
	container atomic.Pointer[string]
	n         atomic.Int64
}

// zeros is what byte streams carry. It is shared: the guest has to live through ten minutes of its own lies.
var zeros = make([]byte, 64<<10)

// greet takes byte streams and says more on each than anybody reads.
func (g *guest) greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			var line [32]byte
			if _, err := c.Read(line[:]); err != nil {
				return
			}
			_, _ = io.WriteString(c, "ok\n")
			for g.mode == lies {
				if _, err := c.Write(zeros); err != nil {
					return
				}
			}
		}()
	}
}

// answer is every method of the protocol.
func (g *guest) answer(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo,
	_ ttrpc.Method,
) (any, error) {
	name := path.Base(info.FullMethod)
	if g.begun.Load() && g.mode == silence {
		select {} // for ever
	}
	switch name {
	case "Check":
		return &agent.HealthCheckResponse{Status: agent.HealthCheckResponse_SERVING}, nil
	case "GetGuestDetails":
		return &agent.GuestDetailsResponse{AgentDetails: &agent.AgentDetails{
			SupportsSeccomp: true,
			ExtraFeatures:   []string{contract.FeatureStreams},
		}}, nil
	case "CreateContainer":
		var r agent.CreateContainerRequest
		if err := unmarshal(&r); err != nil {
			return nil, err
		}
		g.container.Store(&r.ContainerId)
	case "StartContainer":
		if !g.begun.Swap(true) {
			go g.attack()
		}
	case "WaitProcess":
		<-ctx.Done()
		select {} // it never ends
	case "GetOOMEvent":
		return g.forgedOOM(), nil
	case "SignalProcess":
		return &emptypb.Empty{}, nil // and goes on
	default:
		if g.begun.Load() {
			return g.lie()
		}
	}
	return &emptypb.Empty{}, nil
}

func (g *guest) forgedOOM() *agent.OOMEvent {
	id := g.container.Load()
	if g.n.Add(1)%2 == 0 && id != nil {
		return &agent.OOMEvent{ContainerId: *id}
	}
	return &agent.OOMEvent{ContainerId: "container-of-another-pod/../x\n"}
}

const most = 4<<20 - 200 // bytes of a message

func (g *guest) lie() (any, error) {
	if g.n.Add(1)%2 == 0 {
		return &agent.Metrics{Metrics: strings.Repeat("m", most)}, nil
	}
	return nil, status.Error(codes.Internal, strings.Repeat("A\n\x1b[31m", most/7))
}

// attack writes what the protocol does not know.
func (g *guest) attack() {
	switch g.mode {
	case answers:
		conn := *g.conn.Load()
		frame := []byte{0, 0, 0, 0, 0, 0, 0, 99, 2, 0} // ttrpc: no body, stream 99, response
		for {
			if _, err := conn.Write([]byte(strings.Repeat(string(frame), 5000))); err != nil {
				return
			}
		}
	case frames, stream:
		frame := binary.BigEndian.AppendUint64([]byte{0, 1, 0, 0}, 77<<32) // yamux: a window of nothing, stream 77
		if g.mode == stream {
			frame = binary.BigEndian.AppendUint64([]byte{0, 1, 0, 1}, 2<<32) // yamux: SYN of stream 2
		}
		for {
			if _, err := g.channel.Write([]byte(strings.Repeat(string(frame), 2000))); err != nil {
				return
			}
		}
	}
}

// remembering is a listener whose connections the guest writes to behind its server's back.
type remembering struct {
	net.Listener
	g *guest
}

func (r *remembering) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err == nil {
		r.g.conn.Store(&c)
	}
	return c, err
}

// channel waits while the host is not connected yet, when a read returns nothing, and writes whole frames.
type channel struct {
	*os.File
	mu sync.Mutex
}

func (c *channel) Read(p []byte) (int, error) {
	for {
		n, err := c.File.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *channel) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	for len(p) > 0 { // the driver takes 32 KiB
		n, err := c.File.Write(p[:min(len(p), 32<<10)])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}
