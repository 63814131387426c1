// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestParseArgs(t *testing.T) {
	serve := Invocation{Namespace: "k8s.io", ID: "c1", Address: "/a.sock", PublishBinary: "/c"}
	with := func(f func(*Invocation)) Invocation { inv := serve; f(&inv); return inv }
	for _, tc := range []struct {
		name, args string
		want       Invocation
		wantErr    error
	}{
		{"serving has no action", "-namespace k8s.io -address /a.sock -publish-binary /c -id c1", serve, nil},
		{
			"flags before the action", "-namespace k8s.io -address /a.sock -publish-binary /c -id c1 -debug start",
			with(func(i *Invocation) { i.Action, i.Debug = "start", true }), nil,
		},
		{
			"flags after the action", "-namespace k8s.io -id c1 delete -address /a.sock -publish-binary /c -bundle /b",
			with(func(i *Invocation) { i.Action, i.Bundle = "delete", "/b" }), nil,
		},
		{"version needs nothing else", "-v", Invocation{Version: true}, nil},
		{"info needs nothing else", "-info", Invocation{Info: true}, nil},
		{"unknown flag", "-namespace a -id b -what start", Invocation{}, errdefs.ErrInvalidArgument},
		{"unknown action", "-namespace a -id b stop", Invocation{}, errdefs.ErrInvalidArgument},
		{"two actions", "-namespace a -id b start delete", Invocation{}, errdefs.ErrInvalidArgument},
		{"no id", "-namespace a start", Invocation{}, errdefs.ErrInvalidArgument},
		{"no namespace", "-id a start", Invocation{}, errdefs.ErrInvalidArgument},
		{"an id that is a path", "-namespace a -id ../b start", Invocation{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseArgs(strings.Fields(tc.args))
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("ParseArgs(%s) error = %v, want %v", tc.args, err, tc.wantErr)
			}
			if err == nil {
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("ParseArgs(%s) (-want +got):\n%s", tc.args, diff)
				}
			}
		})
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeParams(t *testing.T) {
	inv := Invocation{Namespace: "ns", ID: "c1", Address: "/flag.sock", PublishBinary: "/flag"}
	full := &api.BootstrapParams{
		InstanceId: "c1", Namespace: "ns", LogLevel: api.LogLevel_LOG_LEVEL_DEBUG,
		ContainerdTtrpcAddress: "/p.ttrpc", ContainerdGrpcAddress: "/p.sock", ContainerdBinary: "/p",
		SocketDir: proto.String("/sd"),
	}
	options := &anypb.Any{
		TypeUrl: "runtimeoptions.v1.Options",
		Value:   marshal(t, &api.RuntimeOptions{ConfigPath: "/x"}),
	}
	full.Extensions = []*api.Extension{{Value: &anypb.Any{TypeUrl: "example.Other"}}, {Value: options}}
	// reads as BootstrapParams{InstanceID: "c1", Namespace: "other"}
	trap := &anypb.Any{TypeUrl: "c1", Value: []byte("other")}
	old := map[string]string{envTTRPCAddress: "/env.ttrpc"}
	newer := map[string]string{envTTRPCAddress: "/env.ttrpc", envMaxVersion: "2"}
	debug := inv
	debug.Debug, debug.Address, debug.PublishBinary = true, "/p.sock", "/p"
	for _, tc := range []struct {
		name    string
		stdin   []byte
		env     map[string]string
		want    Params
		answer  string
		wantErr error
	}{
		{"1.6: nothing on stdin", nil, old, Params{inv, "/env.ttrpc", defaultSocketDir, nil, plainAddress}, "unix:///s", nil},
		{
			"1.7: options on stdin", marshal(t, options), newer,
			Params{inv, "/env.ttrpc", defaultSocketDir, marshal(t, options), jsonAnswer},
			`{"version":2,"address":"unix:///s","protocol":"ttrpc"}`, nil,
		},
		{"options that look like parameters of another", marshal(t, trap), old, Params{
			inv, "/env.ttrpc", defaultSocketDir,
			marshal(t, trap), plainAddress,
		}, "unix:///s", nil},
		{
			"2.3: parameters win over flags and environment", marshal(t, full), newer,
			Params{debug, "/p.ttrpc", "/sd", marshal(t, options), protoAnswer},
			string(marshal(t, &api.BootstrapResult{Version: 3, Address: "unix:///s", Protocol: "ttrpc"})), nil,
		},
		{
			"2.3: what is empty comes from the flags", marshal(t, &api.BootstrapParams{InstanceId: "c1", Namespace: "ns"}),
			newer,
			Params{inv, "/env.ttrpc", defaultSocketDir, nil, protoAnswer},
			string(marshal(t, &api.BootstrapResult{Version: 3, Address: "unix:///s", Protocol: "ttrpc"})), nil,
		},
		{
			"relative socket directory",
			marshal(t, &api.BootstrapParams{InstanceId: "c1", Namespace: "ns", SocketDir: proto.String("s")}),
			newer,
			Params{},
			"", errdefs.ErrInvalidArgument,
		},
		{"garbage", []byte{0xff, 0xff, 0xff}, newer, Params{}, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := DecodeParams(inv, tc.stdin, func(k string) string { return tc.env[k] })
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("DecodeParams error = %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(Params{})); diff != "" {
				t.Errorf("DecodeParams (-want +got):\n%s", diff)
			}
			answer, err := got.answer("unix:///s")
			if err != nil || string(answer) != tc.answer {
				t.Errorf("answer = %q, %v, want %q", answer, err, tc.answer)
			}
		})
	}
}

func FuzzDecodeParams(f *testing.F) {
	f.Add([]byte{})
	f.Add(marshal(f, &api.BootstrapParams{InstanceId: "c1", Namespace: "ns", SocketDir: proto.String("/s")}))
	f.Add(marshal(f, &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte("x")}))
	inv := Invocation{Namespace: "ns", ID: "c1"}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		defer worktest.Bound(t, len(stdin))()
		p, err := DecodeParams(inv, stdin, func(string) string { return "" })
		if err != nil {
			return
		}
		if p.ID != inv.ID || p.Namespace != inv.Namespace || !filepath.IsAbs(p.SocketDir) {
			t.Errorf("DecodeParams(%x) = %+v: identity changed or socket directory relative", stdin, p)
		}
	})
}

// The name is what containerd's own shims use (pkg/shim.CreateSocketAddress), so that people find it:
// printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
func TestSocketNameIsContainerds(t *testing.T) {
	const want = "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888"
	if got := socketName("/run/containerd/containerd.sock", "default", "c1"); got != want {
		t.Errorf("socketName = %s, want %s", got, want)
	}
}

func TestSocketAddressRefusesLongDirectories(t *testing.T) {
	if _, err := socketAddress("/"+strings.Repeat("d", 41), "/a", "n", "i"); err != nil {
		t.Errorf("a path of 107 bytes: %v", err)
	}
	_, err := socketAddress("/"+strings.Repeat("d", 42), "/a", "n", "i")
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "socket_dir") {
		t.Errorf("a path of 108 bytes: %v, want a refusal that names socket_dir", err)
	}
}

func TestListen(t *testing.T) {
	address := scheme + filepath.Join(t.TempDir(), "s", "x")
	first, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(strings.TrimPrefix(address, scheme)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", info, err)
	}
	if _, err := listen(address); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("listen where somebody serves = %v, want ErrAlreadyExists", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if isServed(address) {
		t.Error("isServed after close")
	}
	second, err := listen(address) // the file is still there
	if err != nil {
		t.Fatalf("listen on a stale socket: %v", err)
	}
	defer func() { _ = second.Close() }()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, scheme))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	for range 2 {
		if err := removeSocket(address); err != nil {
			t.Error(err)
		}
	}
}
