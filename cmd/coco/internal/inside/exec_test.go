// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package inside

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/shim/rpc"
	"github.com/coco-shim/coco/virtcontainers"
)

// text is what a pod of Kubernetes says.
const text = `coco_pod_info{pod="p1",namespace="k8s.io",pod_name="web",pod_namespace="shop",hypervisor="qemu",platform="none"} 1
coco_container_start_seconds{pod="p1",container="c1",container_name="nginx"} 0.5
`

// fakeShim runs commands on the host instead of in a guest.
type fakeShim struct {
	dir    string // bundle of pod and container
	stdout string // of the container

	mu      sync.Mutex
	deny    bool
	spec    specs.Process
	req     *api.ExecProcessRequest
	cmd     *exec.Cmd
	done    chan struct{}
	deleted bool
}

func (s *fakeShim) State(_ context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	if r.Id == "stopped1" {
		return &api.StateResponse{Id: r.Id, Bundle: s.dir, Status: api.Status_STOPPED}, nil
	}
	return &api.StateResponse{Id: r.Id, Bundle: s.dir, Status: api.Status_RUNNING, Stdout: s.stdout}, nil
}

func (s *fakeShim) Exec(_ context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deny {
		return nil, errdefs.ErrPermissionDenied.WithMessage("exec is not in the policy")
	}
	s.req = r
	return &emptypb.Empty{}, json.Unmarshal(r.Spec.Value, &s.spec)
}

func (s *fakeShim) Start(context.Context, *api.StartRequest) (*api.StartResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = exec.Command(s.spec.Args[0], s.spec.Args[1:]...)
	s.cmd.Dir, s.cmd.Env = s.spec.Cwd, s.spec.Env
	var files []io.Closer
	open := func(path string) *os.File {
		if path == "" {
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil
		}
		files = append(files, f)
		return f
	}
	s.cmd.Stdout, s.cmd.Stderr = open(s.req.Stdout), open(s.req.Stderr)
	if s.req.Stdin != "" {
		f, err := os.Open(s.req.Stdin)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		s.cmd.Stdin = f
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // its state is asked for
		for _, f := range files {
			_ = f.Close()
		}
	}(s.cmd, s.done)
	return &api.StartResponse{}, nil
}

func (s *fakeShim) Wait(ctx context.Context, _ *api.WaitRequest) (*api.WaitResponse, error) {
	select {
	case <-s.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	code := s.cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 143
	}
	return &api.WaitResponse{ExitStatus: uint32(code)}, nil
}

func (s *fakeShim) Kill(_ context.Context, _ *api.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.cmd.Process.Kill()
}

func (s *fakeShim) CloseIO(context.Context, *api.CloseIORequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *fakeShim) Delete(context.Context, *api.DeleteRequest) (*api.DeleteResponse, error) {
	s.deleted = true
	return &api.DeleteResponse{}, nil
}

// servePod serves one pod with the metrics in text and a shim.
func servePod(t *testing.T, text string) (config string, s *fakeShim) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { os.RemoveAll(dir) })
	s = &fakeShim{dir: filepath.Join(dir, "bundle")}
	place := filepath.Join(dir, "s", "p1")
	for _, d := range []string{s.dir, place} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(place, virtcontainers.MetricsSocket))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- metrics.Serve(ctx, l, func(context.Context) string { return text }) }()
	t.Cleanup(func() { cancel(); <-done })
	s.serve(t, filepath.Join(dir, "task.sock"))

	t.Chdir(s.dir) // a shim works in the bundle, and this process serves the metrics
	config = filepath.Join(dir, "config.toml")
	write(t, config, "[runtime]\nstate_dir = \""+filepath.Join(dir, "s")+"\"\n")
	write(t, filepath.Join(s.dir, "config.json"), `{"process": {"args": ["init"], "cwd": "/", "env": ["A=of the container"]}}`)
	return config, s
}

func (s *fakeShim) serve(t *testing.T, socket string) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State": rpc.Unary(s.State), "Exec": rpc.Unary(s.Exec), "Start": rpc.Unary(s.Start), "Wait": rpc.Unary(s.Wait),
		"Kill": rpc.Unary(s.Kill), "CloseIO": rpc.Unary(s.CloseIO), "Delete": rpc.Unary(s.Delete),
	}})
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	write(t, filepath.Join(s.dir, "address"), "unix://"+socket)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// both runs a command and returns what it writes to either stream.
func both(ctx context.Context, t *testing.T, cmd *cobra.Command, in string, args ...string) (
	out, errs string, err error,
) {
	t.Helper()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var o, e bytes.Buffer
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(ctx)
	return o.String(), e.String(), err
}

func TestExec(t *testing.T) {
	config, s := servePod(t, text)
	out, errs, err := both(t.Context(), t, ExecCommand(), "", "--config", config, "shop/web", "--", "sh", "-c",
		`echo "$A in $PWD"; echo no >&2; exit 3`)
	var code exitError
	if out != "of the container in /\n" || errs != "no\n" || !errors.As(err, &code) || code.ExitCode() != 3 {
		t.Errorf("exec = %q, %q, %v", out, errs, err)
	}
	if !s.deleted || s.req.Id != "c1" || s.spec.Terminal {
		t.Errorf("exec asked for %v and removed it: %v", s.req, s.deleted)
	}
	if _, err := os.Stat(filepath.Dir(s.req.Stdout)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the FIFOs are left: %v", err)
	}
	long := strings.Repeat("0123456789", 50_000)
	out, _, err = both(t.Context(), t, ExecCommand(), long, "--config", config, "-i", "-w", "/tmp", "web", "-c", "nginx",
		"--", "sh", "-c", "pwd; cat")
	if err != nil || out != "/tmp\n"+long {
		t.Errorf("exec -i returns %d bytes, %v", len(out), err)
	}
}

func TestExecIsInterrupted(t *testing.T) {
	config, _ := servePod(t, text)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := ExecCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(w)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"--config", config, "web", "--", "sh", "-c", "echo up; exec sleep 1000"})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	var code exitError
	if err := <-done; !errors.As(err, &code) || code != 143 {
		t.Errorf("an interrupted exec = %v", err)
	}
}

func TestExecThatIsRefused(t *testing.T) {
	config, s := servePod(t, text)
	for want, args := range map[string][]string{
		"it has nginx":               {"shop/web", "-c", "other", "--", "ls"},
		"coco ps lists all":          {"shop/other", "--", "ls"},
		"-t needs a terminal":        {"shop/web", "-t", "--", "ls"},
		"requires at least 2 arg(s)": {"shop/web"},
	} {
		_, _, err := both(t.Context(), t, ExecCommand(), "", append([]string{"--config", config}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("exec %v = %v, want %q", args, err, want)
		}
	}
	s.deny = true
	_, _, err := both(t.Context(), t, ExecCommand(), "", "--config", config, "shop/web", "--", "ls")
	if err == nil || !strings.Contains(err.Error(), "exec is not in the policy") ||
		!strings.Contains(err.Error(), "coco policy show") {
		t.Errorf("a denied exec = %v", err)
	}
}

func TestExecInAStoppedContainer(t *testing.T) {
	config, _ := servePod(t, strings.ReplaceAll(text, `container="c1"`, `container="stopped1"`))
	_, _, err := both(t.Context(), t, ExecCommand(), "", "--config", config, "web", "--", "ls")
	if err == nil || !strings.Contains(err.Error(), "STOPPED") {
		t.Errorf("exec in a stopped container = %v", err)
	}
}
