// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/portmux"
)

// When a guest dies, the error of any broken connection names the death and not its effect.
func TestALostConnectionIsExplainedByTheVMsDeath(t *testing.T) {
	for _, broken := range []error{
		ttrpc.ErrClosed, portmux.ErrLost, io.EOF, io.ErrUnexpectedEOF,
		unix.ECONNRESET, unix.EPIPE,
	} {
		t.Run(broken.Error(), func(t *testing.T) {
			w := newWorld(t)
			p, err := CreatePod(t.Context(), w.options())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			w.vm().die(&hypervisor.DeadError{VM: "c1", Phase: hypervisor.PhaseRun, Reason: "its kernel panicked"})
			err = p.m.Agent.Fault(t.Context(), fmt.Errorf("announce stream 1: %w", broken))
			var dead *hypervisor.DeadError
			if !errors.As(err, &dead) || !errdefs.IsUnavailable(err) {
				t.Errorf("fault(%v) = %v, want the VM's death", broken, err)
			}
		})
	}
}
