// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pod starts, calls and ends the shim of a pod as containerd does. The shim is containerd-shim-coco-v2 in its
// usual role. Its events go nowhere: coco-oci asks.
package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
)

// Namespace stands for containerd's where the shim wants one.
const Namespace = "coco-oci"

const shimName = "containerd-shim-coco-v2"

// Shim starts shims, and cleans up after them.
type Shim struct {
	Root    string // of the containers; distinguishes pods of equal names
	Sockets string
	Debug   bool
}

// executable finds the shim: beside this program, or in PATH.
func executable() (string, error) {
	self, err := os.Executable()
	if err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		beside := filepath.Join(filepath.Dir(self), shimName)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	found, err := exec.LookPath(shimName)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; install coco: %w", shimName, self, errdefs.ErrNotFound)
	}
	return found, nil
}

// run runs an action of the shim in a container's directory.
func (s Shim) run(ctx context.Context, dir, id, action string, stdin []byte) ([]byte, error) {
	exe, err := executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-namespace", Namespace, "-id", id, "-address", s.Root, "-bundle", dir}
	if s.Debug {
		args = append(args, "-debug")
	}
	cmd := exec.CommandContext(ctx, exe, append(args, action)...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { // conmon's, containerd's and systemd's
		name, _, _ := strings.Cut(e, "=")
		return strings.HasPrefix(name, "_OCI_") || name == "TTRPC_ADDRESS" || name == "NOTIFY_SOCKET"
	})
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s of the shim: %w: %s", action, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// Start finds or starts the shim that serves a container, whose directory holds its specification, and returns the
// address.
func (s Shim) Start(ctx context.Context, dir, id string) (string, error) {
	debug := api.LogLevel_LOG_LEVEL_WARN
	if s.Debug {
		debug = api.LogLevel_LOG_LEVEL_DEBUG
	}
	params, err := proto.Marshal(&api.BootstrapParams{
		InstanceId: id, Namespace: Namespace, LogLevel: debug, ContainerdGrpcAddress: s.Root, SocketDir: &s.Sockets,
	})
	if err != nil {
		return "", fmt.Errorf("encode the parameters of the shim: %w", err)
	}
	out, err := s.run(ctx, dir, id, "start", params)
	if err != nil {
		return "", err
	}
	var answer api.BootstrapResult
	if err := proto.Unmarshal(out, &answer); err != nil || answer.GetAddress() == "" {
		return "", fmt.Errorf("start of the shim: the answer %.100q names no address", out)
	}
	return answer.GetAddress(), nil
}

// Delete ends the shim of a container and removes its sockets and mounts. It may be called at any time.
func (s Shim) Delete(ctx context.Context, dir, id string) error {
	_, err := s.run(ctx, dir, id, "delete", nil)
	return err
}

// Client is a connection with a shim.
type Client struct{ conn *ttrpc.Client }

// dialTimeout bounds the connecting. The socket is local.
const dialTimeout = 5 * time.Second

// Dial connects. A shim that is gone is errdefs.ErrUnavailable.
func Dial(address string) (Client, error) {
	conn, err := net.DialTimeout("unix", strings.TrimPrefix(address, "unix://"), dialTimeout)
	if err != nil {
		return Client{}, fmt.Errorf("the shim does not answer at %s: %w: %w", address, err, errdefs.ErrUnavailable)
	}
	return Client{ttrpc.NewClient(conn)}, nil
}

// Close ends the connection.
func (c Client) Close() error { return c.conn.Close() }

// Do calls a method of the task service whose answer has nothing in it that matters.
func (c Client) Do(ctx context.Context, method string, req proto.Message) error {
	return c.call(ctx, method, req, &emptypb.Empty{})
}

func (c Client) call(ctx context.Context, method string, req, resp proto.Message) error {
	return failed(c.conn.Call(ctx, "containerd.task.v2.Task", method, req, resp))
}

// Create makes a container and returns the pid of its VMM.
func (c Client) Create(ctx context.Context, req *api.CreateTaskRequest) (int, error) {
	var resp api.CreateTaskResponse
	err := c.call(ctx, "Create", req, &resp)
	return int(resp.GetPid()), err
}

// State returns the state of a container's first process.
func (c Client) State(ctx context.Context, id string) (api.Status, error) {
	var resp api.StateResponse
	err := c.call(ctx, "State", &api.StateRequest{Id: id}, &resp)
	return resp.GetStatus(), err
}

// Wait waits for the end of a process and returns its exit status.
func (c Client) Wait(ctx context.Context, id, exec string) (uint32, error) {
	var resp api.WaitResponse
	err := c.call(ctx, "Wait", &api.WaitRequest{Id: id, ExecId: exec}, &resp)
	return resp.GetExitStatus(), err
}

// Owning marks a Wait as that of a process's stand-in: the shim kills the process when the connection ends before it.
func Owning(ctx context.Context) context.Context {
	return ttrpc.WithMetadata(ctx, ttrpc.MD{bundle.OwnerKey: {"yes"}})
}

// failed returns the shim's error: its text without what ttrpc puts before it, and its class.
func failed(err error) error {
	if err == nil || errors.Is(err, ttrpc.ErrClosed) {
		return err
	}
	native := errgrpc.ToNative(err)
	for _, class := range []error{
		errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented,
		errdefs.ErrAlreadyExists, errdefs.ErrUnavailable,
	} {
		if errors.Is(native, class) {
			return remote{status.Convert(err).Message(), class}
		}
	}
	return remote{status.Convert(err).Message(), nil}
}

type remote struct {
	text  string
	class error
}

func (r remote) Error() string { return r.text }
func (r remote) Unwrap() error { return r.class }
