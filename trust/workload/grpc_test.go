// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/coco-shim/coco/policy"
)

// echo answers with what it gets, and refuses "no".
type echo struct{}

func (echo) Has(path string) bool { return strings.HasPrefix(path, "/x.Service/") || path == "/status" }

func (echo) Answer(_ context.Context, c *policy.Container, method, path string, body []byte) (int, any) {
	return http.StatusOK, map[string]string{"of": c.Name, "asked": method + " " + path + " " + string(body)}
}

func (echo) Call(_ context.Context, c *policy.Container, path string, in []byte) ([]byte, int, string) {
	if string(in) == "no" {
		return nil, int(codes.PermissionDenied), "not 100% open: ü"
	}
	return []byte(c.Name + " " + path + " " + string(in)), 0, ""
}

// bytesCodec sends messages as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (bytesCodec) Name() string                       { return "proto" }

// The client of gRPC itself calls over socket and port, beside HTTP/1. Each connection is its container's.
func TestCallsOfGRPC(t *testing.T) {
	cfg := config(newBroker(t))
	cfg.Azure = echo{}
	a := start(t, cfg)
	call := func(network, container, in string) (string, error) {
		dial := func(context.Context, string) (net.Conn, error) { return a.dial(network, container), nil }
		c, err := grpc.NewClient("passthrough:///127.0.0.1", grpc.WithContextDialer(dial),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		msg, out := []byte(in), []byte(nil)
		err = c.Invoke(t.Context(), "/x.Service/Say", &msg, &out)
		return string(out), err
	}
	for _, network := range []string{"unix", "tcp4"} {
		if out, err := call(network, "b", "hello"); err != nil || out != "b /x.Service/Say hello" {
			t.Errorf("%s: %q, %v", network, out, err)
		}
		_, err := call(network, "b", "no")
		if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "not 100% open: ü" {
			t.Errorf("%s, refused: %v", network, err)
		}
		if _, err := call(network, "b", strings.Repeat("x", maxBody)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s, too long: %v", network, err)
		}
		if _, err := call(network, "nobody", "hello"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s, a stranger: %v", network, err)
		}
	}
	code, _, body := ask(t, a.client("unix", "b"), http.MethodGet, "http://x/status", nil)
	if code != http.StatusOK || body != `{"asked":"GET /status ","of":"b"}` {
		t.Errorf("HTTP/1: %d %s", code, body)
	}
}
