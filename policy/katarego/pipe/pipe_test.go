// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pipe

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
)

// book is a policy: the sandbox named as its text is allowed once, and nothing else.
type book struct {
	text    string
	handled int
	wrong   error // of a commit
}

func (b *book) Ask(m proto.Message) (Verdict, error) {
	req, ok := m.(*pb.CreateSandboxRequest)
	switch {
	case !ok:
		return Verdict{}, errors.New("no rule")
	case req.GetSandboxId() == "free":
		return Verdict{Allowed: true}, nil
	case req.GetSandboxId() != b.text, b.handled > 0:
		return Verdict{Reason: "not " + req.GetSandboxId()}, nil
	}
	return Verdict{Allowed: true, Commit: func() error {
		b.handled++
		return b.wrong
	}}, nil
}

// start serves a policy and returns the client, and what Serve returned once it ended.
func start(t *testing.T, b *book) (*Client, <-chan error, net.Conn) {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		defer there.Close()
		ended <- Serve(there, there, func(text string) (Judge, error) {
			b.text = text
			return b, nil
		})
	}()
	c, err := New(here, "s1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Broken(errors.New("the test is over")) })
	return c, ended, there
}

func TestQuestionsAndCommits(t *testing.T) {
	b := &book{}
	c, ended, _ := start(t, b)
	s1 := &pb.CreateSandboxRequest{SandboxId: "s1"}
	commit, err := c.Ask(s1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ask(s1); err != nil {
		t.Errorf("what was not handled counts: %v", err)
	}
	commit()
	_, err = c.Ask(s1)
	if !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "not s1") || b.handled != 1 {
		t.Errorf("%v after %d commits", err, b.handled)
	}
	free, err := c.Ask(&pb.CreateSandboxRequest{SandboxId: "free"})
	if err != nil {
		t.Fatal(err)
	}
	free()
	_, err = c.Ask(&pb.StartContainerRequest{})
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "no rule") {
		t.Error(err)
	}
	c.Broken(errors.New("it was killed"))
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
	_, err = c.Ask(&pb.CreateSandboxRequest{SandboxId: "free"})
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "does not answer: ask: it was killed") {
		t.Error(err)
	}
}

// TestTheEngineEnds: everything is denied by name afterwards, also when the commit was the first to notice.
func TestTheEngineEnds(t *testing.T) {
	c, _, there := start(t, &book{})
	commit, err := c.Ask(&pb.CreateSandboxRequest{SandboxId: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	there.Close()
	commit()
	for range 2 {
		_, err = c.Ask(&pb.CreateSandboxRequest{SandboxId: "free"})
		if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "coco-rego does not answer") {
			t.Error(err)
		}
	}
}

// TestACommitFails: nobody knows the state then, and nothing is allowed any more.
func TestACommitFails(t *testing.T) {
	c, _, _ := start(t, &book{wrong: errors.New("no room")})
	commit, err := c.Ask(&pb.CreateSandboxRequest{SandboxId: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	commit()
	_, err = c.Ask(&pb.CreateSandboxRequest{SandboxId: "free"})
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
}

func TestAPolicyIsRefused(t *testing.T) {
	here, there := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(there, there, func(string) (Judge, error) { return nil, errors.New("line 1: no Rego") })
	}()
	if _, err := New(here, "x"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "line 1: no Rego") {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestOddAnswersDeny: whatever the program says that is not an answer.
func TestOddAnswersDeny(t *testing.T) {
	for name, answer := range map[string][]byte{
		"empty": {0, 0, 0, 0}, "unknown": {0, 0, 0, 1, 'z'},
		"short number": {0, 0, 0, 2, 'y', 1}, "no number": {0, 0, 0, 1, 'y'},
		"long": {0xff, 0, 0, 0}, "cut": {0, 0, 0, 9, 'y'}, "nothing": {},
	} {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			_, _ = readFrame(there)
			_ = writeFrame(there)
			_, _ = readFrame(there)
			_, _ = there.Write(answer)
		}()
		c, err := New(here, "s1")
		if err != nil {
			t.Fatal(err)
		}
		if commit, err := c.Ask(&pb.CheckRequest{}); err == nil || commit != nil || !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Ask(&pb.CheckRequest{}); err == nil {
			t.Errorf("%s: the client goes on", name)
		}
	}
}

// TestOddFramesAreAnswered: the server's input is the agent's, and still nothing in it ends the program but its end.
func TestOddFramesAreAnswered(t *testing.T) {
	var in, out bytes.Buffer
	frames := [][]byte{
		[]byte("s1"),
		{},
		[]byte("z"), []byte("a"), []byte("agrpc.Nothing\x00"), []byte("agrpc.CreateSandboxRequest\x00\xff"),
		[]byte("c"), append([]byte("c"), number(7)...),
	}
	for _, f := range frames {
		if err := writeFrame(&in, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := Serve(&in, &out, func(string) (Judge, error) { return &book{}, nil }); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		f, err := readFrame(&out)
		kind, _ := split(f)
		if err != nil || i > 0 && kind != kindError {
			t.Errorf("answer %d is %q, %v", i, f, err)
		}
	}
	if err := Serve(strings.NewReader("\x00\x00"), io.Discard, nil); err == nil {
		t.Error("half a frame is a policy")
	}
}

// TestVerdictsInFlightAreBounded: the oldest is forgotten, and its commit breaks the client.
func TestVerdictsInFlightAreBounded(t *testing.T) {
	c, _, _ := start(t, &book{})
	var first func()
	for i := range maxPending + 1 {
		commit, err := c.Ask(&pb.CreateSandboxRequest{SandboxId: "s1"})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = commit
		}
	}
	first()
	_, err := c.Ask(&pb.CreateSandboxRequest{SandboxId: "free"})
	if err == nil || !strings.Contains(err.Error(), "not known") {
		t.Error(err)
	}
}
