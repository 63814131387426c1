// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/standin"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
	"github.com/coco-shim/coco/internal/testvm"
)

// TestMain is a stand-in where a test starts one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == standin.Arg {
		os.Exit(standin.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// fakeShim has one process, which ends when it is deleted.
type fakeShim struct {
	address string
	ended   chan struct{}

	mu     sync.Mutex
	calls  []string
	refuse string // a method that fails
}

func (f *fakeShim) did(call string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.calls, call)
}

func newFakeShim(t *testing.T, refuse string) *fakeShim {
	t.Helper()
	f := &fakeShim{address: filepath.Join(t.TempDir(), "s"), ended: make(chan struct{}), refuse: refuse}
	end := sync.OnceFunc(func() { close(f.ended) })
	methods := map[string]ttrpc.Method{}
	for _, name := range []string{"Exec", "Start", "State", "Delete", "Wait"} {
		methods[name] = func(ctx context.Context, _ func(any) error) (any, error) {
			f.mu.Lock()
			f.calls = append(f.calls, name)
			f.mu.Unlock()
			switch {
			case name == f.refuse:
				return nil, errors.New("no " + name)
			case name == "Delete":
				end()
			case name == "Wait":
				select {
				case <-f.ended:
				case <-ctx.Done():
				}
				return &api.WaitResponse{}, nil
			}
			return &emptypb.Empty{}, nil
		}
	}
	l, err := net.Listen("unix", f.address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.Register("containerd.task.v2.Task", methods)
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		end()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served // it was closed
	})
	return f
}

// TestAnExecThatFailsLeavesNothing: neither a process that runs, nor FIFOs, nor a pid file.
func TestAnExecThatFailsLeavesNothing(t *testing.T) {
	testvm.Need(t, testvm.Root) // the stand-in has namespaces of its own
	for _, c := range []struct {
		name, pidFile, refuse, want string
	}{
		{"no directory for the pid file", "none/pid", "", "write the pid file"},
		{"a start that fails", "pid", "Start", "no Start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			shim := newFakeShim(t, c.refuse)
			o := options{root: t.TempDir(), stdout: io.Discard}
			dir, err := o.state().Claim("a")
			if err != nil {
				t.Fatal(err)
			}
			if err := o.state().Save(state.Container{ID: "a", Pod: "a", Address: shim.address}); err != nil {
				t.Fatal(err)
			}
			process, pid := filepath.Join(o.root, "process.json"), filepath.Join(o.root, c.pidFile)
			if err := os.WriteFile(process, []byte(`{"args": ["sh"], "cwd": "/"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = dispatch(o, []string{"exec", "--detach", "--process", process, "--pid-file", pid, "a"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("exec = %v, want %q", err, c.want)
			}
			if c.refuse == "" && shim.did("Start") {
				t.Error("the process was started, and its pid is not known to anybody")
			}
			if !shim.did("Delete") {
				t.Error("the shim has the process still")
			}
			left, err := filepath.Glob(filepath.Join(dir, "io-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left are %q, %v", left, err)
			}
			if _, err := os.Lstat(pid); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pid file after an error = %v", err)
			}
		})
	}
}

// TestListBesideABrokenShim: containers of other shims are listed, and the error names the one that cannot be.
func TestListBesideABrokenShim(t *testing.T) {
	shim := newFakeShim(t, "State")
	var out bytes.Buffer
	o := options{root: t.TempDir(), stdout: &out}
	for id, address := range map[string]string{"gone": filepath.Join(o.root, "none"), "broken": shim.address} {
		if _, err := o.state().Claim(id); err != nil {
			t.Fatal(err)
		}
		if err := o.state().Save(state.Container{ID: id, Pod: id, Address: "unix://" + address}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dispatch(o, []string{"list", "-q"}); err == nil || !strings.Contains(err.Error(), "container broken: ") {
		t.Errorf("list beside a broken shim: %v, want an error that names it", err)
	}
	if got := out.String(); got != "gone\n" {
		t.Errorf("list beside a broken shim prints %q, want the other container", got)
	}
}
