// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
)

// The test binary is the shim that the tests start: it serves one call, which ends it.
const (
	envServe = "COCO_TEST_SERVE"
	envFail  = "COCO_TEST_SERVE_FAIL"
)

func TestMain(m *testing.M) {
	if os.Getenv(envServe) == "" {
		os.Exit(m.Run())
	}
	inv, err := ParseArgs(os.Args[1:])
	if err == nil {
		err = Serve(inv, func(Env) (Program, error) {
			if os.Getenv(envFail) != "" {
				return nil, errors.New("no such machine")
			}
			return &program{done: make(chan struct{})}, nil
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type program struct{ done chan struct{} }

func (p *program) Register(s *ttrpc.Server) {
	s.Register("test", map[string]ttrpc.Method{
		"End": func(context.Context, func(any) error) (any, error) {
			close(p.done)
			return &emptypb.Empty{}, nil
		},
	})
}
func (p *program) Done() <-chan struct{}      { return p.done }
func (p *program) Deserted()                  {}
func (p *program) Stop(context.Context) error { return nil }

func startParams(t *testing.T, id string) (Params, bundle.Dir) {
	t.Helper()
	t.Setenv(envServe, "1")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	p := Params{Invocation: Invocation{Namespace: "ns", ID: id, Address: "/a"}, SocketDir: sockets}
	return p, bundle.Dir(dir)
}

func end(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, scheme))
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	defer func() { _ = c.Close() }()
	// The process may leave before its answer is out; containerd takes that for an answer too.
	err = c.Call(t.Context(), "test", "End", &emptypb.Empty{}, &emptypb.Empty{})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Errorf("end the shim: %v", err)
	}
}

func awaitGone(t *testing.T, p bundle.Process) {
	t.Helper()
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if gone, err := awaitExit(t.Context(), fd, 10*time.Second); err != nil || !gone {
		t.Errorf("process %d: gone = %v, %v", p.PID, gone, err)
	}
}

func TestStartServesUntilItsProgramIsDone(t *testing.T) {
	p, dir := startParams(t, "c1")
	answer, err := Start(t.Context(), p, dir, os.Args[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	address := string(answer)
	if a, err := dir.Address(); err != nil || a != address {
		t.Errorf("address file = %q, %v, want %q", a, err, address)
	}
	shim, ok := dir.Shim()
	if !ok {
		t.Fatal("the bundle names no serving process")
	}
	if _, err := Start(t.Context(), p, dir, os.Args[0], nil); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second Start = %v, want ErrAlreadyExists", err)
	}

	member, other := p, bundle.Dir(t.TempDir())
	member.ID = "c2"
	spec := `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"c1"}}`
	if err := os.WriteFile(filepath.Join(string(other), "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if answer, err := Start(t.Context(), member, other, os.Args[0], nil); err != nil || string(answer) != address {
		t.Errorf("Start of a container in the pod = %q, %v, want %q", answer, err, address)
	}
	if _, ok := other.Shim(); ok {
		t.Error("the member's bundle names a process of its own")
	}

	end(t, address)
	awaitGone(t, shim)
	if _, err := os.Stat(strings.TrimPrefix(address, scheme)); !os.IsNotExist(err) {
		t.Errorf("socket after the end: %v", err)
	}
	if _, err := Start(t.Context(), member, other, os.Args[0], nil); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Start of a container whose sandbox is gone = %v, want ErrUnavailable", err)
	}
}

func TestStartTellsWhyServingFails(t *testing.T) {
	p, dir := startParams(t, "c1")
	t.Setenv(envFail, "1")
	_, err := Start(t.Context(), p, dir, os.Args[0], nil)
	if err == nil || !strings.Contains(err.Error(), "no such machine") {
		t.Errorf("Start = %v, want the reason", err)
	}
	if left, _ := os.ReadDir(p.SocketDir); len(left) > 0 {
		t.Errorf("left in the socket directory: %v", left)
	}
}

func TestTerminateEndsTheShim(t *testing.T) {
	p, dir := startParams(t, "c1")
	if _, err := Start(t.Context(), p, dir, os.Args[0], nil); err != nil {
		t.Fatal(err)
	}
	shim, _ := dir.Shim()
	if err := unix.Kill(shim.PID, unix.SIGHUP); err != nil { // ignored
		t.Fatal(err)
	}
	if err := unix.Kill(shim.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, shim)
	if left, _ := os.ReadDir(p.SocketDir); len(left) > 0 {
		t.Errorf("left in the socket directory: %v", left)
	}
}

func TestDeleteEndsAShimThatWasGivenUp(t *testing.T) {
	p, dir := startParams(t, "c1")
	if _, err := Start(t.Context(), p, dir, os.Args[0], nil); err != nil {
		t.Fatal(err)
	}
	shim, _ := dir.Shim()
	if err := dir.WriteInit(77); err != nil {
		t.Fatal(err)
	}
	cleaned := 0
	for range 2 { // idempotent
		out, err := Delete(t.Context(), p.Invocation, dir, func(context.Context, string) error { cleaned++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		var r api.DeleteResponse
		if err := proto.Unmarshal(out, &r); err != nil || r.ExitStatus != 137 || r.Pid != 77 || r.ExitedAt == nil {
			t.Errorf("Delete = %v, %v, want exit status 137 of pid 77", &r, err)
		}
	}
	awaitGone(t, shim)
	if cleaned != 2 {
		t.Errorf("cleanup was called %d times, want 2", cleaned)
	}
	if left, _ := os.ReadDir(p.SocketDir); len(left) > 0 {
		t.Errorf("left in the socket directory: %v", left)
	}
	if err := dir.WriteExit(bundle.Exit{Status: 5, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	out, err := Delete(t.Context(), p.Invocation, dir, func(context.Context, string) error { return nil })
	var r api.DeleteResponse
	if err != nil || proto.Unmarshal(out, &r) != nil || r.ExitStatus != 5 {
		t.Errorf("Delete after a recorded exit = %v, %v, want 5", &r, err)
	}
}

func TestTheReaperTakesOnlyWhatNobodyWaitsFor(t *testing.T) {
	for pid := endedChild(); pid != 0; pid = endedChild() { // shims of other tests: Start leaves them
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	orphan := exec.Command("true")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(orphan.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if gone, err := awaitExit(t.Context(), fd, 10*time.Second); err != nil || !gone {
		t.Fatalf("the orphan ended = %v, %v", gone, err)
	}
	r := &reaper{log: slog.New(slog.DiscardHandler)}
	first := r.collect(0)
	if first != orphan.Process.Pid {
		t.Fatalf("first look = %d, want %d, not collected", first, orphan.Process.Pid)
	}
	if left := r.collect(first); left != 0 {
		t.Errorf("second look leaves %d", left)
	}
	if err := orphan.Wait(); err == nil {
		t.Error("the orphan was not collected")
	}
}
