// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// serve makes a server over fakes and serves its ports on sockets. It returns how to connect to a port.
func serve(t *testing.T) (dial func(port uint32) net.Conn) {
	t.Helper()
	f := newFixture(t)
	cfg := f.Config
	cfg.PortForward, cfg.Resolver = true, true
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := func(port uint32) string { return filepath.Join(dir, fmt.Sprint(port)) }
	ctx, cancel := context.WithCancel(context.Background())
	ports := s.ports(ctx)
	ended := make(chan error, len(ports))
	var all []net.Listener
	for port, handle := range ports {
		l, err := net.Listen("unix", name(port))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
		go func() { ended <- handle(l) }()
	}
	t.Cleanup(func() {
		if err := s.Close(within(t)); err != nil {
			t.Error(err)
		}
		cancel()
		for _, l := range all {
			_ = l.Close()
		}
		for range all {
			<-ended
		}
	})
	return func(port uint32) net.Conn {
		c, err := net.Dial("unix", name(port))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

func strange(m proto.Message, number protowire.Number) {
	raw := protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), 1)
	m.ProtoReflect().SetUnknown(protoreflect.RawFields(raw))
}

// TestWhatIsUnknownIsRefusedByName: fields at three depths, and the greetings of the stream ports.
func TestWhatIsUnknownIsRefusedByName(t *testing.T) {
	dial := serve(t)
	client := ttrpc.NewClient(dial(contract.PortAgent))
	defer client.Close()
	a := pb.NewAgentServiceClient(client)
	if _, err := a.CreateSandbox(within(t), &pb.CreateSandboxRequest{SandboxId: "pod"}); err != nil {
		t.Fatal(err)
	}
	depth := map[string]func(*pb.CreateContainerRequest){
		"CreateContainerRequest: field 2000": func(r *pb.CreateContainerRequest) { strange(r, 2000) },
		"CreateContainerRequest.OCI.Linux: field 1000": func(r *pb.CreateContainerRequest) {
			strange(r.OCI.Linux, 1000)
		},
		"CreateContainerRequest.OCI.Linux.Devices[1]: field 77": func(r *pb.CreateContainerRequest) {
			strange(r.OCI.Linux.Devices[1], 77)
		},
		"CreateContainerRequest.storages[0].fs_group: field 1000000": func(r *pb.CreateContainerRequest) {
			strange(r.Storages[0].FsGroup, 1000000)
		},
	}
	for want, spoil := range depth {
		r := &pb.CreateContainerRequest{ContainerId: "c1", OCI: spec(), Storages: []*pb.Storage{{FsGroup: &pb.FSGroup{}}}}
		r.OCI.Linux.Devices = []*pb.LinuxDevice{{}, {}}
		spoil(r)
		_, err := a.CreateContainer(within(t), r)
		if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), want) {
			t.Errorf("CreateContainer = %v, want %q", err, want)
		}
	}
	if _, err := a.StartContainer(within(t),
		&pb.StartContainerRequest{ContainerId: "c1"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("the container of a refused request: %v", err)
	}
	check := &pb.CheckRequest{}
	strange(check, 5)
	if _, err := pb.NewHealthClient(client).Check(within(t), check); err == nil ||
		!strings.Contains(err.Error(), "CheckRequest: field 5") {
		t.Errorf("Check = %v", err)
	}
	for _, tc := range []struct {
		port       uint32
		line, want string
	}{
		{contract.PortStreams, contract.StreamWord + " 1\n", contract.GreetingOK + "\n"},
		{contract.PortStreams, "stream 2 tty=1\n", `unknown field "tty=1"`},
		{contract.PortStreams, "attach 2\n", `unknown word "attach"`},
		{contract.PortForward, "80 udp\n", `unknown field "udp"`},
		{contract.PortForward, "tcp 80\n", `"tcp" is not a number`},
		{contract.PortResolver, "stream 1\n", `unknown word "stream"`},
		{contract.PortResolver, "resolver 2\n", `"2" is not a number from 1 to 1`},
		{contract.PortUpper, "stream 1\n", `unknown word "stream"`},
		{contract.PortUpper, "upper 4\n", `"4" is not a number from 1 to 3`},
		{contract.PortUpper, "upper 1\n", "the guest has 0 containers"},
		{contract.PortUpper, "upper 3\n", "the guest has 0 containers"},
	} {
		c := dial(tc.port)
		if _, err := io.WriteString(c, tc.line); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 512)
		n, err := c.Read(got)
		if !strings.Contains(string(got[:n]), tc.want) {
			t.Errorf("port %d, %q: %q, %v; want %q", tc.port, tc.line, got[:n], err, tc.want)
		}
	}
}

// TestWhatCannotBeDecoded is the caller's fault, and says which message it is.
func TestWhatCannotBeDecoded(t *testing.T) {
	client := ttrpc.NewClient(serve(t)(contract.PortAgent))
	defer client.Close()
	bad := &emptypb.Empty{}
	bad.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "\xff"))
	err := client.Call(within(t), "grpc.AgentService", "StartContainer", bad, &emptypb.Empty{})
	if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), "StartContainerRequest") {
		t.Errorf("StartContainer = %v", err)
	}
	for _, name := range []string{"NoSuchCall", ""} {
		err := client.Call(within(t), "grpc.AgentService", name, &emptypb.Empty{}, &emptypb.Empty{})
		if !errdefs.IsNotImplemented(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), "method "+name) {
			t.Errorf("%q = %v", name, err)
		}
	}
}

// TestNoCallStreams: the gate sees calls with one request and one answer. A streaming call would go around it.
func TestNoCallStreams(t *testing.T) {
	for _, file := range []protoreflect.FileDescriptor{pb.File_coco_agent_agent_proto, pb.File_coco_agent_health_proto} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				if m := methods.Get(j); m.IsStreamingClient() || m.IsStreamingServer() {
					t.Errorf("%s streams: Server needs a gate for its messages", m.FullName())
				}
			}
		}
	}
}
