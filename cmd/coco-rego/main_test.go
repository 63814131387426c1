// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy/katarego/pipe"
)

// TestMain runs the program instead of the tests where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("COCO_REGO_PROGRAM") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// conn is the program's input and output.
type conn struct{ in, out *os.File }

func (c conn) Read(b []byte) (int, error)  { return c.out.Read(b) }
func (c conn) Write(b []byte) (int, error) { return c.in.Write(b) }
func (c conn) SetDeadline(t time.Time) error {
	_ = c.in.SetDeadline(t)
	return c.out.SetDeadline(t)
}

func (c conn) Close() error {
	_ = c.in.Close()
	return c.out.Close()
}

func start(t *testing.T, policy string) (*pipe.Client, *exec.Cmd) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "COCO_REGO_PROGRAM=1")
	cmd.Stderr = t.Output()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = inR, outW
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	c, err := pipe.New(conn{inW, outR}, policy)
	if err != nil {
		t.Fatal(err)
	}
	return c, cmd
}

const rules = `package agent_policy
import future.keywords.if
default StartContainerRequest := false
StartContainerRequest if { print("id is", input.container_id); input.container_id == "c1" }
PauseContainerRequest if { x := "0123456789abcdef"
` + "count(big(big(big(big(big(big(big(big(big(x)))))))))) == 1 }\n" + `big(x) := concat("", [x, x, x, x, x, x, x, x, x, x])
`

func TestItAnswersAndEndsWithItsInput(t *testing.T) {
	c, cmd := start(t, rules)
	if _, err := c.Ask(&pb.StartContainerRequest{ContainerId: "c1"}); err != nil {
		t.Error(err)
	}
	_, err := c.Ask(&pb.StartContainerRequest{ContainerId: "c2"})
	if err == nil || !strings.Contains(err.Error(), "id is c2") {
		t.Error(err)
	}
	c.Broken(os.ErrClosed)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestMemoryIsBounded: a rule that makes 16 GB of text ends the program, and everything is denied.
func TestMemoryIsBounded(t *testing.T) {
	c, cmd := start(t, rules)
	for _, id := range []string{"first", "later"} {
		_, err := c.Ask(&pb.PauseContainerRequest{})
		if err == nil || !strings.Contains(err.Error(), "does not answer: ask: it has ended") {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := c.Ask(&pb.StartContainerRequest{ContainerId: "c1"}); err == nil {
		t.Error("the program has ended, and a request is allowed")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the program has ended well")
	}
}
