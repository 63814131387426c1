// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
)

// pattern is bytes that no text conversion leaves alone.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func (v *vm) testData(t *testing.T) {
	data := pattern(64 << 20)
	s := v.create(t, "d1", spec("cat"))
	v.start(t, "d1")
	begin := time.Now()
	go func() {
		_, _ = s.in.Write(data)
		_ = closeWrite(s.in)
	}()
	h := sha256.New()
	n, err := io.Copy(h, s.out)
	t.Logf("64 MiB in and out: %v", time.Since(begin))
	if err != nil || n != int64(len(data)) || !bytes.Equal(h.Sum(nil), sum(data)) {
		t.Errorf("%d bytes came back, %v; or not the same", n, err)
	}
	if got := v.wait(t, "d1", ""); got != 0 {
		t.Errorf("exit code %d", got)
	}
	v.remove(t, "d1")
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func (v *vm) testCalls(t *testing.T) {
	ctx := within(t, 60*time.Second)
	if _, err := v.agent.CreateContainer(ctx, &pb.CreateContainerRequest{
		ContainerId: "r1",
		OCI:         spec("sh", "-c", "cat; echo bye >&2"),
	}); err != nil {
		t.Fatal(err)
	}
	v.start(t, "r1")
	data := pattern(1 << 20)
	go func() {
		for rest := data; len(rest) > 0; {
			r, err := v.agent.WriteStdin(ctx, &pb.WriteStreamRequest{
				ContainerId: "r1", ExecId: "r1",
				Data: rest[:min(len(rest), 32<<10)],
			})
			if err != nil {
				t.Error(err)
				return
			}
			rest = rest[r.Len:]
		}
		_, _ = v.agent.CloseStdin(ctx, &pb.CloseStdinRequest{ContainerId: "r1"})
	}()
	read := func(f func() (*pb.ReadStreamResponse, error)) (all []byte) {
		for {
			r, err := f()
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Data) == 0 {
				return all
			}
			all = append(all, r.Data...)
		}
	}
	req := &pb.ReadStreamRequest{ContainerId: "r1", Len: 32 << 10}
	out := read(func() (*pb.ReadStreamResponse, error) { return v.agent.ReadStdout(ctx, req) })
	e := read(func() (*pb.ReadStreamResponse, error) { return v.agent.ReadStderr(ctx, req) })
	if !bytes.Equal(out, data) || string(e) != "bye\n" {
		t.Errorf("%d bytes came back, and %q", len(out), e)
	}
	if got := v.wait(t, "r1", "r1"); got != 0 {
		t.Errorf("exit code %d", got)
	}
	v.remove(t, "r1")
}

func (v *vm) testTerminal(t *testing.T) {
	sp := spec("sh", "-c", "stty size; read x; stty size; read y; echo got $y; exit 5")
	sp.Process.Terminal = true
	sp.Process.ConsoleSize = &pb.Box{Height: 20, Width: 30}
	s := v.create(t, "t1", sp)
	v.start(t, "t1")
	buf := make([]byte, 7)
	if _, err := io.ReadFull(s.out, buf); err != nil || string(buf) != "20 30\r\n" {
		t.Errorf("size %q, %v", buf, err)
	}
	if _, err := v.agent.TtyWinResize(within(t, 10*time.Second), &pb.TtyWinResizeRequest{
		ContainerId: "t1", Row: 40,
		Column: 50,
	}); err != nil {
		t.Error(err)
	}
	v.testExecTerminal(t)
	_, _ = io.WriteString(s.in, "\nword\n")
	out, _ := io.ReadAll(s.out)
	for _, want := range []string{"40 50\r\n", "got word\r\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output %q lacks %q", out, want)
		}
	}
	if got := v.wait(t, "t1", ""); got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
	v.remove(t, "t1")
}

func (v *vm) testExecTerminal(t *testing.T) {
	x := v.open(t)
	p := spec("sh", "-c", "tty; stty size; read a; exit 6").Process
	p.Terminal, p.ConsoleSize = true, &pb.Box{Height: 11, Width: 22}
	if _, err := v.agent.ExecProcess(within(t, 30*time.Second), &pb.ExecProcessRequest{
		ContainerId: "t1", ExecId: "tty", Process: p, StdinPort: x.ports[0], StdoutPort: x.ports[1],
	}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(x.in, "\n")
	out, _ := io.ReadAll(x.out)
	if !strings.Contains(string(out), "/dev/pts/") || !strings.Contains(string(out), "11 22\r\n") {
		t.Errorf("exec with a terminal: output %q", out)
	}
	if got := v.wait(t, "t1", "tty"); got != 6 {
		t.Errorf("exec with a terminal: exit code %d, want 6", got)
	}
}
