// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/testvm"
)

// TestHostComesAndGoes: the channel has no peer at first, then one, then another. The sandbox stays.
// A host that comes back before the guest has noticed that it was gone is taken for the old one
// speaking nonsense; that session ends, and the host has to try again.
func TestHostComesAndGoes(t *testing.T) {
	testvm.Need(t, testvm.QEMU, testvm.GuestImage)
	sock := filepath.Join(t.TempDir(), "s")
	v := launch(t, buildInitrd(t), "path="+sock+",server=on,wait=off", nil)
	for round := range 2 {
		begin := time.Now()
		attempts := 1
		for v.dialSocket(t, sock, bootDeadline>>(2*round)) != nil {
			v.disconnect()
			if attempts++; time.Since(begin) > 2*bootDeadline {
				t.Fatalf("session %d: no answer in %d attempts\n%s", round, attempts, v.log())
			}
		}
		t.Logf("session %d: answers at attempt %d", round, attempts)
		_, err := v.agent.CreateSandbox(within(t, 30*time.Second), &pb.CreateSandboxRequest{SandboxId: "pod"})
		if round == 0 && err != nil || round > 0 && !is(err, errdefs.IsAlreadyExists) {
			t.Errorf("session %d: CreateSandbox = %v", round, err)
		}
		v.disconnect()
	}
}

// dialSocket connects to QEMU's socket, as soon as there is one, and to the agent behind it.
func (v *vm) dialSocket(t *testing.T, sock string, limit time.Duration) error {
	t.Helper()
	var c net.Conn
	var err error
	for end := time.Now().Add(bootDeadline); time.Now().Before(end); {
		if c, err = net.Dial("unix", sock); err == nil {
			return v.session(t, c, limit)
		}
	}
	return err
}
