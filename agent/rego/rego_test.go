// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/agent/reap"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy/katarego/pipe"
)

// TestMain is coco-rego where a test starts it so: with a policy of one word.
func TestMain(m *testing.M) {
	if len(os.Args) > 0 && os.Args[0] == program {
		if err := pipe.Serve(os.Stdin, os.Stdout, compile); err != nil {
			os.Exit(3)
		}
		os.Exit(0)
	}
	reaper = reap.New()
	code := m.Run()
	reaper.Close()
	if err := goleak.Find(); err != nil && code == 0 {
		_, _ = os.Stderr.WriteString(err.Error())
		code = 1
	}
	os.Exit(code)
}

// judge is the policy of the tests. It allows what "c1" is named in, but no input and no output. It hangs at "c8" and
// dies of "c9".
type judge struct{}

func compile(text string) (pipe.Judge, error) {
	switch text {
	case "good":
		return judge{}, nil
	case "dies":
		os.Exit(7)
	case "hangs":
		time.Sleep(time.Hour)
	}
	return nil, errors.New("line 1: no Rego")
}

func (judge) Ask(m proto.Message) (pipe.Verdict, error) {
	id := m.(interface{ GetContainerId() string }).GetContainerId()
	switch m.(type) {
	case *pb.WriteStreamRequest:
		return pipe.Verdict{Reason: "no input"}, nil
	case *pb.ReadStreamRequest:
		return pipe.Verdict{Allowed: id == "loud"}, nil
	}
	switch id {
	case "c8":
		time.Sleep(time.Hour)
	case "c9":
		os.Exit(9)
	}
	return pipe.Verdict{Allowed: id == "c1", Reason: "not " + id, Commit: func() error { return nil }}, nil
}

var reaper *reap.Reaper // started by TestMain

// config starts this program as coco-rego, as the user of the tests.
func config(t *testing.T, policy string) Config {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Policy: policy,
		Ready:  func(context.Context) error { return nil },
		Open:   func(_ context.Context, part string) (string, error) { return "/parts/" + part, nil },
		Spawn: func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error) {
			if want := filepath.Join("/parts", contract.PartRego, program); path != want || len(attr.Files) != 3 {
				t.Errorf("spawn of %s with %d files, want %s with 3", path, len(attr.Files), want)
			}
			if s := attr.Sys; s.Credential == nil || s.Credential.Uid == 0 || s.Cloneflags == 0 || len(attr.Env) > 0 {
				t.Errorf("the program has rights: %+v, %q", s, attr.Env)
			}
			attr.Sys = nil
			return reaper.Spawn(exe, argv, attr)
		},
	}
}

func TestQuestions(t *testing.T) {
	e := Start(config(t, "good"))
	defer e.Close()
	commit, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	commit()
	_, err = e.Ask(&pb.StartContainerRequest{ContainerId: "c2"})
	if !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "not c2") {
		t.Error(err)
	}
	if _, err := e.Ask(&pb.ExecProcessRequest{ContainerId: "c1", StdinPort: 7}); err == nil ||
		!strings.HasPrefix(err.Error(), "no input") {
		t.Errorf("a stream to the input is allowed: %v", err)
	}
	if _, err := e.Ask(&pb.ExecProcessRequest{ContainerId: "c1", StdoutPort: 7}); err != nil {
		t.Error(err)
	}
	if e.Output("c1", "") || !e.Output("loud", "") {
		t.Error("the output is not what the policy says")
	}
}

// TestEverythingIsDeniedAfterTheEnd: with the status, in each way in which the program ends.
func TestEverythingIsDeniedAfterTheEnd(t *testing.T) {
	e := Start(config(t, "good"))
	defer e.Close()
	if _, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c9"}); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
	<-e.ended
	_, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c1"})
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "coco-rego does not answer") {
		t.Error(err)
	}
	if e.Output("loud", "") {
		t.Error("output is shown without a policy")
	}
}

func TestWhatCannotStartDenies(t *testing.T) {
	for name, tc := range map[string]struct {
		policy string
		change func(*Config)
		want   string
	}{
		"refused": {"x", nil, "policy.rego is refused: line 1: no Rego"},
		"ends":    {"dies", nil, "it has ended"},
		"modules": {"good", func(c *Config) {
			c.Ready = func(context.Context) error { return errors.New("no modules") }
		}, "load modules: no modules"},
		"part": {"good", func(c *Config) {
			c.Open = func(context.Context, string) (string, error) { return "", errors.New("no part") }
		}, "no part"},
		"program": {"good", func(c *Config) {
			c.Spawn = func(string, []string, *syscall.ProcAttr) (*reap.Child, error) { return nil, syscall.ENOENT }
		}, "no such file"},
	} {
		c := config(t, tc.policy)
		if tc.change != nil {
			tc.change(&c)
		}
		e := Start(c)
		for range 2 {
			_, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c1"})
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want %q", name, err, tc.want)
			}
		}
		e.Close()
	}
}

// TestCloseEndsTheProgram, and questions afterwards are denied.
func TestCloseEndsTheProgram(t *testing.T) {
	e := Start(config(t, "good"))
	if _, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c1"}); err != nil {
		t.Fatal(err)
	}
	e.Close()
	if _, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c1"}); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
}

// TestCloseWaitsForNoAnswer: neither while the policy is being compiled, nor while a question is open.
func TestCloseWaitsForNoAnswer(t *testing.T) {
	for _, policy := range []string{"hangs", "good"} {
		c := config(t, policy)
		spawn, spawned := c.Spawn, make(chan struct{})
		c.Spawn = func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error) {
			defer close(spawned)
			return spawn(path, argv, attr)
		}
		e := Start(c)
		<-spawned
		asked := make(chan error, 1)
		go func() {
			_, err := e.Ask(&pb.StartContainerRequest{ContainerId: "c8"})
			asked <- err
		}()
		began := time.Now()
		e.Close()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("policy %q: Close took %v", policy, took)
		}
		if err := <-asked; !errdefs.IsPermissionDenied(err) {
			t.Errorf("policy %q: the open question has the answer %v", policy, err)
		}
	}
}
