// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"io"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func TestVM(t *testing.T) {
	testvm.Need(t, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	v := boot(t, buildInitrd(t))
	if _, err := v.agent.CreateContainer(within(t, 10*time.Second), &pb.CreateContainerRequest{ContainerId: "early", OCI: spec("true")}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("CreateContainer before CreateSandbox = %v, want FAILED_PRECONDITION", err)
	}
	if _, err := v.agent.CreateSandbox(within(t, 10*time.Second), &pb.CreateSandboxRequest{Hostname: "pod-host", SandboxId: "pod"}); err != nil {
		t.Fatalf("CreateSandbox: %v", err)
	}
	v.busybox(t)
	ok := t.Run("exit code and output", func(t *testing.T) {
		begin := time.Now()
		s := v.create(t, "c1", spec("sh", "-c", "cat; echo err >&2; hostname; exit 7"))
		t.Logf("create: %v", time.Since(begin))
		begin = time.Now()
		v.start(t, "c1")
		t.Logf("start: %v", time.Since(begin))
		io.WriteString(s.in, "hello\n")
		closeWrite(s.in)
		out, _ := io.ReadAll(s.out)
		e, _ := io.ReadAll(s.err)
		if string(out) != "hello\npod-host\n" || string(e) != "err\n" {
			t.Errorf("output %q, %q", out, e)
		}
		if got := v.wait(t, "c1", ""); got != 7 {
			t.Errorf("exit code %d, want 7", got)
		}
		begin = time.Now()
		v.remove(t, "c1")
		t.Logf("remove: %v", time.Since(begin))
	})
	if !ok {
		t.FailNow()
	}
}
